"""A module's full state dict, under any strategy."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import torch
from numpy.typing import NDArray

from lightning_fl_ext.metrics.discovery import unwrapped, weights_of
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import Exchange, to_torch
from lightning_fl_ext.wire.loading import load_weights
from lightning_fl_ext.wire.tied import left_alone, place

_TRUE_PRECISIONS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


def is_sharded(trainer: Any) -> bool:
    """Tell whether the strategy spreads parameters over ranks (FSDP, ModelParallel, DeepSpeed at stage 3).

    Args:
        trainer: A Lightning Trainer in a run.
    """
    after_setup = getattr(trainer.strategy, "restore_checkpoint_after_setup", False)
    return bool(after_setup) and (not is_deepspeed(trainer) or _is_zero3(trainer))


def is_deepspeed(trainer: Any) -> bool:
    """Tell DeepSpeed's strategy: at stages 1 and 2 each rank has all weights, at stage 3 a shard of them.

    Args:
        trainer: A Lightning Trainer.
    """
    return any(base.__name__ == "DeepSpeedStrategy" for base in type(trainer.strategy).__mro__)


def is_fsdp1(trainer: Any) -> bool:
    """Tell the strategy of FSDP1, which joins parameters before it spreads them.

    Args:
        trainer: A Lightning Trainer.
    """
    return any(base.__name__ == "FSDPStrategy" for base in type(trainer.strategy).__mro__)


def _is_zero3(trainer: Any) -> bool:
    return bool(getattr(trainer.strategy, "zero_stage_3", False))


def is_built_later(module: Any) -> bool:
    """Tell whether a module may lack layers in a callback's ``setup``, since its own hooks build them.

    Args:
        module: A LightningModule of either Lightning.
    """
    hooks = (getattr(type(module), name) for name in ("setup", "configure_model"))
    return any(not hook.__module__.startswith(("lightning.", "pytorch_lightning.")) for hook in hooks)


def true_dtype(trainer: Any) -> torch.dtype | None:
    """Give the dtype to which the Trainer's precision casts a module, if it casts it.

    Args:
        trainer: A Lightning Trainer.
    """
    return _TRUE_PRECISIONS.get(str(trainer.precision))


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


def load_early(trainer: Any, module: torch.nn.Module, exchange: Exchange, arrays: Arrays) -> list[str]:
    """Load what travelled before the strategy has the module, on every rank by itself.

    Does nothing if the module's tensors are not there yet (``meta``) or are sharded by an earlier run.
    Otherwise the same as :func:`load_state`.
    """
    state = weights_of(module)
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    if not any(tensor.is_meta or hasattr(tensor, "device_mesh") for tensor in tensors):
        travelled = exchange.unpack(arrays, _undo_precision(trainer, state, arrays))
        load_weights(module, travelled)
        return left_alone(state, travelled)
    return list(state)


def load_state(trainer: Any, module: torch.nn.Module, exchange: Exchange, arrays: Arrays) -> list[str]:
    """Load what travelled into the module, leaving alone what did not.

    Args:
        trainer: A Lightning Trainer in a run. Under a sharded strategy every rank makes this call.
        module: The LightningModule.
        exchange: What of the state dict travels.
        arrays: As the other side packed them.

    Returns:
        Names of the state-dict entries that did not travel: not other names of tensors that did, nor what
        belongs to metrics.

    Raises:
        StateMismatchError: They do not fit the module.
    """
    if not is_sharded(trainer):
        return load_early(trainer, module, exchange, arrays)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = _read(trainer, module)  # empty on the other ranks, which are sent their part
    full = exchange.unpack(arrays, _undo_precision(trainer, state, arrays)) if trainer.is_global_zero else {}
    if not _is_zero3(trainer):  # which spreads what was loaded early
        options = StateDictOptions(full_state_dict=True, strict=False, broadcast_from_rank0=True)
        set_model_state_dict(trainer.strategy.model, dict(full), options=options)
    return left_alone(state, full)


def _read(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    if not is_sharded(trainer):
        return weights_of(module)
    full = (_gather_zero3 if _is_zero3(trainer) else _gather)(trainer, module)
    first: dict[int, str] = {}  # what is tied in the module comes in copies
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        if (plain := unwrapped(name)) in full:
            full[plain] = full[first.setdefault(id(tensor), plain)]
    # FSDP1 takes the module that is first asked for its own state dict for the outermost one.
    return weights_of(module, full)


def _gather(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    """Gather a state dict in rank 0's main memory; that of the others is empty."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(trainer.strategy.model, options=options))


def _gather_zero3(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    """The same under DeepSpeed, one parameter after the other: all may be too many for a device."""
    gathered = importlib.import_module("deepspeed").zero.GatheredParameters
    full = {}
    for name, value in module.state_dict(keep_vars=True).items():
        with gathered([value]) if hasattr(value, "ds_id") else nullcontext():
            if isinstance(value, torch.Tensor) and trainer.is_global_zero:
                full[name] = value.detach().to("cpu", copy=True)
    return full


def _undo_precision(trainer: Any, state: dict[str, Any], like: Arrays | None) -> dict[str, Any]:
    """Give floats the dtypes they came in, where a true-half or true-double precision casts them."""
    cast = true_dtype(trainer)
    if like is None or cast is None:
        return state
    wanted = {name: _torch_dtype(like[name]) for name in like if name in state}
    floats = {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    undone = {
        place(value): value.to(wanted[name])
        for name, value in floats.items()
        if name in wanted and wanted[name].is_floating_point
        if cast in (value.dtype, wanted[name])  # cast already, or about to be
    }
    return state | {n: undone[place(value)] for n, value in floats.items() if place(value) in undone}


def _torch_dtype(array: NDArray[Any]) -> torch.dtype:
    return to_torch(array[:0] if array.ndim else array).dtype
