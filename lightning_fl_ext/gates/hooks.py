"""Hooks by which a module's gate, a child of it, acts on what the module takes or returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates.checks import check_not_nested
from lightning_fl_ext.gates.stochastic import StochasticGateModule

CHILD = "stochastic_gate"
"""The name of the gate within the gated module."""


class HookedGate(StochasticGateModule):
    """Gates that act when a hook of the module that they are a child of calls them.

    A module may call all of its children, whatever they are. It would gate twice, or worse.
    """

    in_sequence = False
    """Whether the module is an ``nn.Sequential``, which is meant to pass by."""

    def forward(self, input: Tensor, by_hook: bool = False) -> Tensor:
        """Gate the input, if a hook asks for it."""
        if by_hook:
            return super().forward(input)
        if self.in_sequence:
            return input
        raise TypeError(
            "these gates are for the hook of the module that they are a child of. If its `forward` calls all"
            " of its children, put gates on these instead, or on what contains it."
        )


def hooked(module: nn.Module, input: Tensor) -> Tensor:
    """Call a module's gates, or what has taken their place."""
    gate = module.get_submodule(CHILD)
    gated: Tensor = gate(input, by_hook=True) if isinstance(gate, HookedGate) else gate(input)
    return gated


def gate_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The hook that gates what a module returns."""
    return (hooked(module, output[0]), *output[1:]) if isinstance(output, tuple) else hooked(module, output)


def _first(module: nn.Module, args: tuple[Any, ...]) -> Tensor:
    if not args or not isinstance(args[0], Tensor):
        raise ValueError(
            f"gates on a {type(module).__name__} need its first argument, by its position, to be a tensor."
            f" Got {type(args[0]).__name__ if args else 'none'}."
        )
    return args[0]


def gate_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The hook that gates a module's first argument."""
    return (hooked(module, _first(module, args)), *args[1:])


def skip_or_run(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The hook that has a module with a closed gate return its first argument."""
    first = output[0] if isinstance(output, tuple) else output
    given = _first(module, args)
    check_not_nested(given)
    if not isinstance(first, Tensor) or given.shape != first.shape:
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(
            f'a {type(module).__name__} with `closed="skip"` must return the shape of its first argument,'
            f" {tuple(given.shape)}. Got {got}. Leave what changes the shape out of `names`."
        )
    chosen = torch.lerp(given, first, hooked(module, torch.ones_like(first)))
    return (chosen, *output[1:]) if isinstance(output, tuple) else chosen


def skipped_or_run(module: nn.Module) -> StochasticGateModule | None:
    """The one gate that decides whether a module is skipped, if it has such a gate."""
    gate = dict(module.named_children()).get(CHILD)
    if skip_or_run in module._forward_hooks.values() and isinstance(gate, StochasticGateModule):
        return gate if gate.gate_shape == () and gate.gater is None else None
    return None


def without_gate(module: nn.Module) -> None:
    """Take the gate and its hook off a module."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook in (gate_output, gate_input, skip_or_run)]:
            del hooks[key]
    delattr(module, CHILD)
