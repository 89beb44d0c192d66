"""Gates on modules that are there already, by hooks: nothing of the model's code or of its names changes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates.stochastic import StochasticGateModule

__all__ = ["gate_modules"]

Side = Literal["output", "input"]
Closed = Literal["zero", "skip"]

CHILD = "stochastic_gate"
"""The name of the gate within the gated module."""


def gate_modules(
    model: nn.Module,
    names: str | Sequence[str],
    num_gates: int | tuple[int, ...] = (),
    *,
    on: Side = "output",
    closed: Closed = "zero",
    **options: Any,
) -> dict[str, StochasticGateModule]:
    """Put gates on modules within a model: on whole layers, on channels, on the heads of an attention.

    Each module gets a child ``stochastic_gate`` and a hook that calls it, so the state dict has new entries
    and none of another name. Call it again on a model that is built anew before its weights are loaded;
    in a LightningModule, in ``__init__``.

    Args:
        model: Its modules are changed in place.
        names: Shell patterns of their names, part by part: ``"encoder.layers.*"`` are the layers, not what
            is within them.
        num_gates: As in `StochasticGateModule`. The default, ``()``, is one gate for the whole module.
        on: Gate what the module returns (of a tuple, the first item), or its first argument.
        closed: What a module with a closed gate returns: zeros, or its first argument (``"skip"``), as if the
            module were not there. For layers that contain their own residual sums, ``"skip"`` it is.
        options: Other arguments of `StochasticGateModule`.

    Returns:
        The gates, by the names of the modules they are on.

    Raises:
        ValueError: A pattern matches no module; one that matches has such gates already, or is the projection
            of an ``nn.MultiheadAttention``, which is never called; or ``closed="skip"`` comes with
            ``on="input"``. In forward: to be skipped, a module must return the shape that it takes.

    Example:
        >>> net = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        >>> sorted(gate_modules(net, "*", closed="skip"))
        ['0', '1', '2']
        >>> net[1].stochastic_gate.logits.data.fill_(-9)
        tensor(-9.)
        >>> for gate in (net[0].stochastic_gate, net[2].stochastic_gate):
        ...     _ = gate.logits.data.fill_(9)
        >>> from lightning_fl_ext.gates import shrink
        >>> shrink(net, torch.ones(2, 4))[1]
        Skipped()
    """
    if on not in get_args(Side) or closed not in get_args(Closed):
        raise ValueError(
            f'`on` must be "output" or "input", and `closed` "zero" or "skip". Got {on!r} and {closed!r}.'
        )
    if closed == "skip" and on == "input":
        raise ValueError('`closed="skip"` is about the output: leave out `on="input"`.')
    chosen = _chosen(model, (names,) if isinstance(names, str) else tuple(names))
    gates = {name: StochasticGateModule(num_gates, **options) for name in chosen}
    for name, module in chosen.items():
        module.add_module(CHILD, gates[name])
        if on == "input":
            module.register_forward_pre_hook(gate_input)
        else:
            module.register_forward_hook(skip_or_run if closed == "skip" else gate_output)
    return gates


def _chosen(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    chosen: dict[str, nn.Module] = {}
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        matched = {name: module for name, module in modules.items() if _matches(name, pattern)}
        if not matched:
            raise ValueError(f"`names`: the pattern {pattern!r} matches none of the modules {[*modules]}.")
        chosen |= matched
    for name, module in chosen.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise ValueError(
                f"`{name}` is never called: `nn.MultiheadAttention` reads its weight. Gate the attention as a"
                " whole, or an attention that calls its output projection."
            )
        if CHILD in dict(module.named_children()):
            raise ValueError(f"`{name}` has gates already.")
        if isinstance(module, StochasticGateModule):
            raise ValueError(f"`{name}` is a gate layer itself.")
    return chosen


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


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
    """Undo :func:`gate_modules` on one module."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook in (gate_output, gate_input, skip_or_run)]:
            del hooks[key]
    delattr(module, CHILD)
