"""A module's full state dict, under any strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_fl_ext.results import Arrays


def is_sharded(trainer: Any) -> bool:
    """Tell whether the strategy spreads parameters over ranks (FSDP, ModelParallel, DeepSpeed).

    Args:
        trainer: A Lightning Trainer in a run.
    """
    return bool(getattr(trainer.strategy, "restore_checkpoint_after_setup", False))


def read_state(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    """Read the whole state dict. Under a sharded strategy this is a collective: every rank calls it.

    Returns:
        Full tensors; under a sharded strategy on the CPU, and on rank 0 alone.
    """
    if not is_sharded(trainer):
        return dict(module.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(trainer.strategy.model, options=options))


def write_state(trainer: Any, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load full tensors into the module, leaving alone what they do not name.

    Args:
        trainer: A Lightning Trainer in a run.
        module: The LightningModule.
        tensors: Full tensors, the same on every rank.
    """
    if not is_sharded(trainer) or trainer.strategy.model is None:
        module.load_state_dict(dict(tensors), strict=False)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(trainer.strategy.model, dict(tensors), options=options)


def undo_precision(trainer: Any, state: dict[str, Any], received: Arrays | None) -> dict[str, Any]:
    """Undo the cast of a true-half or true-double precision: what came as float32 counts as float32.

    Args:
        trainer: A Lightning Trainer in a run.
        state: The module's state dict under the Trainer's precision.
        received: The global weights, whose dtypes the other side expects; None if there are none.

    Returns:
        The state with floating tensors in the dtypes of the arrays of the same name.
    """
    precision = str(trainer.precision)
    if received is None or not precision.endswith("-true") or precision == "32-true":
        return state
    return {
        name: value.to(getattr(torch, received[name].dtype.name))
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name in received
        else value
        for name, value in state.items()
    }
