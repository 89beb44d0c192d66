"""What a gate layer refuses: its input, and its groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def check_input(gate: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError unless a layer is called with a floating or complex tensor; it is a hook."""
    input = args[0] if args else kwargs.get("input")
    if not isinstance(input, Tensor):
        raise TypeError(f"`StochasticGateModule` needs a tensor. Got {type(input).__name__}.")
    check_not_nested(input)
    if not (input.is_floating_point() or input.is_complex()):
        raise TypeError(
            f"`StochasticGateModule` needs a floating or complex input. Got {input.dtype}. "
            "Convert it by `input.float()`."
        )


def check_not_nested(input: Tensor) -> None:
    """Raise TypeError for a nested tensor, as an ``nn.TransformerEncoder`` makes of padded examples."""
    if input.is_nested:
        raise TypeError(
            "gates need an input that is not nested. Build the `nn.TransformerEncoder` around them with"
            " `enable_nested_tensor=False`, or set its `use_nested_tensor = False`; `gate_modules` does that"
            " if it is given the encoder or what contains it."
        )


def checked_groups(groups: Tensor | Sequence[Any], gate_shape: tuple[int, ...]) -> Tensor:
    """The gate of each position, as int64.

    Raises:
        ValueError: They are not whole numbers from 0 on, or a gate has no position.
    """
    found = torch.as_tensor(groups)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or not found.numel():
        raise ValueError(f"`groups` must be whole numbers, one for each position. Got {groups!r}.")
    if len(gate_shape) != 1:
        raise ValueError(f"`groups` needs `num_gates` to be a number. Got {gate_shape}.")
    named = sorted(set(found.flatten().tolist()))
    if named != list(range(gate_shape[0])):
        raise ValueError(
            f"`groups` must name every gate from 0 to {gate_shape[0] - 1}, and no other. Got {named}."
        )
    return found.long()
