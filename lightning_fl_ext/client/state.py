"""A module's full state dict, under any strategy."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import Exchange, to_torch

_TRUE_PRECISIONS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


def is_sharded(trainer: Any) -> bool:
    """Tell whether the strategy spreads parameters over ranks (FSDP, ModelParallel, DeepSpeed).

    Args:
        trainer: A Lightning Trainer in a run.
    """
    return bool(getattr(trainer.strategy, "restore_checkpoint_after_setup", False))


def pack_state(
    trainer: Any, module: torch.nn.Module, exchange: Exchange, like: Arrays | None
) -> dict[str, NDArray[Any]]:
    """Copy what travels out of the module.

    Args:
        trainer: A Lightning Trainer in a run. Under a sharded strategy every rank makes this call.
        module: The LightningModule.
        exchange: What of the state dict travels.
        like: The weights the other side sent: floats that the Trainer's precision cast go back to the dtypes
            they came in. None if it sent none.

    Returns:
        Named arrays; under a sharded strategy none but on rank 0.
    """
    state = _read(trainer, module)
    if is_sharded(trainer) and not trainer.is_global_zero:
        return {}
    return exchange.pack(_undo_precision(trainer, state, like))


def load_state(trainer: Any, module: torch.nn.Module, exchange: Exchange, arrays: Arrays) -> None:
    """Load what travelled into the module, leaving alone what did not.

    Args:
        trainer: A Lightning Trainer in a run. Under a sharded strategy every rank makes this call.
        module: The LightningModule.
        exchange: What of the state dict travels.
        arrays: As the other side packed them.

    Raises:
        StateMismatchError: They do not fit the module.
    """
    state = _read(trainer, module)
    if not is_sharded(trainer):
        tensors = exchange.unpack(arrays, _undo_precision(trainer, state, arrays))
        module.load_state_dict(tensors, strict=False)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    first = trainer.is_global_zero  # the other ranks hold no full state to check against, and are sent theirs
    full = exchange.unpack(arrays, _undo_precision(trainer, state, arrays)) if first else {}
    options = StateDictOptions(full_state_dict=True, strict=False, broadcast_from_rank0=True)
    set_model_state_dict(trainer.strategy.model, dict(full), options=options)


def _read(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    if not is_sharded(trainer):
        return dict(module.state_dict())
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(trainer.strategy.model, options=options))


def _undo_precision(trainer: Any, state: dict[str, Any], like: Arrays | None) -> dict[str, Any]:
    """Give back the dtypes that a true-half or true-double precision cast away."""
    cast = _TRUE_PRECISIONS.get(str(trainer.precision))
    if like is None or cast is None:
        return state
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return state | {
        name: value.to(_torch_dtype(like[name]))
        for name, value in tensors.items()
        if value.dtype == cast and name in like and _torch_dtype(like[name]).is_floating_point
    }


def _torch_dtype(array: NDArray[Any]) -> torch.dtype:
    return to_torch(array[:0] if array.ndim else array).dtype
