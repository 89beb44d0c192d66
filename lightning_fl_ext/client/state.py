"""A module's full state dict, under any strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def is_sharded(trainer: Any) -> bool:
    """Tell whether the strategy spreads parameters over ranks (FSDP, ModelParallel, DeepSpeed).

    Args:
        trainer: A Lightning Trainer in a run.
    """
    return bool(getattr(trainer.strategy, "restore_checkpoint_after_setup", False))


def refuse_zero3(trainer: Any) -> None:
    """Refuse DeepSpeed ZeRO-3, whose full state dict exists nowhere.

    Raises:
        ValueError: The strategy is DeepSpeed at stage 3.
    """
    if getattr(trainer.strategy, "zero_stage_3", False):
        raise ValueError(
            "`FlowerBridge` cannot collect weights that DeepSpeed ZeRO stage 3 spreads over the ranks."
            " Use stage 2, or `strategy='fsdp'`."
        )


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
