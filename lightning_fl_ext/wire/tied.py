"""Tied tensors: one tensor of a module that a state dict has under several names."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any

import torch


def untied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give of all tensors that are one and the same, under several names, the first.

    Example:
        >>> one, other = torch.ones(2), torch.ones(2)
        >>> list(untied({"a": one, "b": other, "c": one}))
        ['a', 'b']
    """
    first: dict[Hashable, str] = {}
    return {name: value for name, value in tensors.items() if first.setdefault(place(value), name) == name}


def left_alone(state: Mapping[str, Any], loaded: Collection[str]) -> list[str]:
    """Give the names of what a load left alone: of tied tensors the first, and none of those it loaded.

    Args:
        state: A state dict; entries that are None are no entries of the model.
        loaded: Names of what was loaded.

    Example:
        >>> one, other = torch.ones(2), torch.ones(2)
        >>> left_alone({"a": one, "b": other, "c": one, "d": None}, ["a"])
        ['b']
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    kept = untied({**{name: tensors[name] for name in loaded if name in tensors}, **tensors})
    return [
        n for n, v in state.items() if n in kept or (v is not None and n not in tensors) if n not in loaded
    ]


def place(tensor: torch.Tensor) -> Hashable:
    """Tell where a tensor lies: equal for tied tensors only; views of one memory may differ."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    # Tensors on `meta` have no address, but share what stands for their memory.
    address = tensor.untyped_storage()._cdata if tensor.is_meta else tensor.data_ptr()
    memory = tensor.device, address, tensor.shape, tensor.stride()
    return *memory, tensor.dtype, tensor.is_conj(), tensor.is_neg()
