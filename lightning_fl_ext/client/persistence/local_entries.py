"""What of a model stays at home, and which of it a fit has changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import digest
from lightning_fl_ext.trees import flatten
from lightning_fl_ext.wire import to_numpy
from lightning_fl_ext.wire.tensors import is_made_of_others


def fingerprints(
    module: torch.nn.Module, names: Collection[str], cast: torch.dtype | None = None
) -> dict[str, str]:
    """Give a digest of each of these entries of a module's state dict, but of those that have none.

    Args:
        module: Freshly built.
        names: Of the entries.
        cast: What the Trainer's precision is about to cast floats to.
    """
    state = module.state_dict()
    found = {name: _fingerprint(_cast(state[name], cast)) for name in names if name in state}
    return {name: value for name, value in found.items() if value is not None}


def changed_entries(
    module: torch.nn.Module, names: Collection[str], built: Mapping[str, str]
) -> dict[str, Any]:
    """Give those of these entries that differ from what the module was built with.

    Args:
        module: After its fit.
        names: Of the entries.
        built: Their :func:`fingerprints` before it. An entry that is not among them counts as changed.
    """
    state = module.state_dict()
    return {
        name: state[name]
        for name in names
        if name in state and (name not in built or _fingerprint(state[name]) != built[name])
    }


def load_local(module: torch.nn.Module, entries: Mapping[str, Any]) -> None:
    """Load the entries of a state dict that the module has by now, in their shapes."""
    if not entries:  # FSDP1 has all ranks meet for a state dict
        return
    state = module.state_dict()
    fitting = {n: v for n, v in entries.items() if n in state and describe(state[n]) == describe(v)}
    module.load_state_dict(fitting, strict=False)


def describe_local(module: torch.nn.Module, names: Collection[str]) -> dict[str, str]:
    """Describe entries of a module's state dict by dtype and shape."""
    state = module.state_dict() if names else {}
    return {f"`{n}`, which does not travel": describe(state[n]) for n in names if n in state}


def describe(value: Any, shape: Sequence[int] | str | None = None) -> str:
    """Give a tensor's dtype and shape, or the type of something else, as which it is read again.

    Args:
        value: What to describe.
        shape: Of the tensor that it is a piece of; `""` if that is not known.
    """
    if not isinstance(value, torch.Tensor):
        return next(
            (kind.__name__ for kind in (dict, tuple) if isinstance(value, kind)), type(value).__qualname__
        )
    whole = list(value.shape) if shape is None else shape
    return f"{str(value.dtype).removeprefix('torch.')}{whole}"


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating and dtype is not None else value


def _taken_apart(value: Any) -> Any:
    """Give the tensors that a tensor is made of, with what else it says of itself; any other as it is."""
    if not (isinstance(value, torch.Tensor) and is_made_of_others(value)):
        return value
    names, rest = value.__tensor_flatten__()  # type: ignore[attr-defined]
    return {"": repr(rest), **{name: _taken_apart(getattr(value, name)) for name in names}}


def _fingerprint(value: Any) -> str | None:
    try:
        data, tensors = flatten(_taken_apart(value))
        arrays = {name: to_numpy(tensor) for name, tensor in tensors.items()}
        return digest({**arrays, "": np.frombuffer(json.dumps(data).encode(), dtype=np.uint8)})
    except (LightningFLError, AttributeError, TypeError, ValueError):
        return None
