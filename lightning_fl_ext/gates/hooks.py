"""Hooks by which a module's gate, a child of it, acts on what the module takes or returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates.stochastic import StochasticGateModule, check_not_nested

CHILD = "stochastic_gate"
"""The name of the gate within the gated module."""


def gate_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The hook that gates what a module returns."""
    gate = module.get_submodule(CHILD)
    return (gate(output[0]), *output[1:]) if isinstance(output, tuple) else gate(output)


def gate_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The hook that gates a module's first argument."""
    if not args:
        raise ValueError(f"gates on the input of a {type(module).__name__} need it as a positional argument.")
    return (module.get_submodule(CHILD)(args[0]), *args[1:])


def skip_or_run(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The hook that has a module with a closed gate return its first argument."""
    first = output[0] if isinstance(output, tuple) else output
    check_not_nested(first)
    if not args or not isinstance(first, Tensor) or getattr(args[0], "shape", None) != first.shape:
        raise ValueError(
            f'a {type(module).__name__} with `closed="skip"` must return the shape of its first argument.'
            f" Got {tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__}."
        )
    chosen = torch.lerp(args[0], first, module.get_submodule(CHILD)(torch.ones_like(first)))
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
