"""Follow one forward, operation by operation, and say what it does to slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_fl_ext.gates.shrinking.calls import Call
from lightning_fl_ext.gates.shrinking.rules import RULES
from lightning_fl_ext.gates.shrinking.slots import Ids, Slots, Value
from lightning_fl_ext.gates.stochastic import StochasticGateModule

# What a tensor tells of itself without being read.
_ABOUT = {"size", "dim", "numel", "stride", "is_floating_point", "is_complex", "is_contiguous", "nelement"}
_ABOUT |= {"get_device", "element_size", "storage_offset", "data_ptr", "__len__", "__hash__", "is_inference"}


@dataclass
class GateSlots:
    """A gate layer with gates along one axis: its slots before and after, as it was met first.

    Attributes:
        open: For each position of the axis, whether its gate is open.
        dim: The axis, counted from the input's first.
        ndim: Dimensions of the input.
        before: Slots of the input along the axis.
        after: Slots of the output.
    """

    open: NDArray[np.bool_]
    dim: int
    ndim: int
    before: Ids
    after: Ids


@dataclass
class Followed:
    """What a forward showed.

    Attributes:
        slots: Joined by all operations.
        leaves: The module's parameters and buffers with their slots, by identity.
        gates: The gate layers met, by identity; None for one whose axis could not be told.
        grouped: Weights of grouped convolutions, by identity.
    """

    slots: Slots = field(default_factory=Slots)
    leaves: dict[int, tuple[Tensor, Value]] = field(default_factory=dict)
    gates: dict[int, GateSlots | None] = field(default_factory=dict)
    grouped: set[int] = field(default_factory=set)


def follow(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], careful: bool) -> Followed:
    """Run a module once in evaluation mode.

    Args:
        module: Its gates are taken as open where their probability exceeds one half.
        args: Of its forward.
        kwargs: Of its forward.
        careful: Whether a shape that is spelled out as a number in a reshape must stay.
    """
    mode = _Mode(module, careful)
    hooks = []
    for gate in {id(m): m for m in module.modules() if isinstance(m, StochasticGateModule)}.values():
        hooks.append(gate.register_forward_pre_hook(mode.enter_gate))
        hooks.append(gate.register_forward_hook(mode.leave_gate, with_kwargs=True))
    try:
        with torch.no_grad(), mode:
            output = module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    for tensor in tensors_in(output):
        mode.followed.slots.need_all(mode.value(tensor))
    for _, value in mode.followed.leaves.values():
        mode.followed.slots.need_unmet(value)
    return mode.followed


def tensors_in(thing: Any) -> Iterable[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Mapping):
        for item in thing.values():
            yield from tensors_in(item)
    elif isinstance(thing, tuple | list):
        for item in thing:
            yield from tensors_in(item)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for part in fields(thing):
            yield from tensors_in(getattr(thing, part.name))


class _Mode(TorchFunctionMode):
    def __init__(self, module: nn.Module, careful: bool) -> None:
        super().__init__()
        self.followed = Followed()
        self.careful = careful
        self._in_gate = False
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._storages: dict[int, set[int]] = {}
        for tensor in (*module.parameters(), *module.buffers()):
            value = Value([self.followed.slots.new(size) for size in tensor.shape], [None] * tensor.ndim)
            long_axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
            if len(long_axes) == 1 and tensor.is_floating_point():
                value.known[long_axes[0]] = tensor.detach().double().reshape(-1).cpu().numpy()
            self._set(tensor, value)
            self.followed.leaves[id(tensor)] = (tensor, value)

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor; of one that is met for the first time, nothing."""
        if id(tensor) not in self._values:
            self._set(tensor, Value.opaque(tensor.ndim))
        return self._values[id(tensor)]

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        with suppress(NotImplementedError, RuntimeError):  # There is none under `vmap`, or if it is sparse.
            self._storages.setdefault(tensor.untyped_storage().data_ptr(), set()).add(id(tensor))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*tensors_in(args), *tensors_in(kwargs)]
        versions = [tensor._version for tensor in given]
        output = func(*args, **kwargs)
        if self._in_gate:
            return output
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.rstrip("_")
        values = [self.value(tensor) for tensor in given]
        if not isinstance(output, Tensor):
            if not (name in _ABOUT or name == "__get__"):
                self._opaque(values)
            return output
        rule = RULES.get(name)
        found = None
        if rule is not None:
            call = Call(self.followed.slots, self.value, func, args, kwargs, output, self.careful)
            call.grouped = self.followed.grouped
            # Called in a way that the rule does not know, it fails, and nothing is known of the result.
            with suppress(AttributeError, IndexError, TypeError, ValueError):
                found = rule(call)
        if found is None or len(found.slots) != output.ndim:
            self._opaque(values)
            found = Value.opaque(output.ndim)
        changed = [t for t, version in zip(given, versions, strict=True) if t._version != version]
        for tensor in changed:  # Other views of it, which share its slots, hold something else now.
            views = self._storages.get(tensor.untyped_storage().data_ptr(), set()) - {id(tensor)}
            if views or tensor is not output:
                self._opaque([self.value(tensor), found])
        self._set(output, found)
        return output

    def _opaque(self, values: Iterable[Value]) -> None:
        for value in values:
            self.followed.slots.need_all(value)

    def enter_gate(self, gate: nn.Module, args: tuple[Any, ...]) -> None:
        """Do not follow what happens within a gate layer."""
        self._in_gate = True

    def leave_gate(
        self, gate: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Take the layer for one operation; for none if it let its input pass."""
        assert isinstance(gate, StochasticGateModule)
        input = args[0] if args else kwargs["input"]
        if output is not input:
            self._set(output, self._gated(gate, self.value(input), input))
        self._in_gate = False

    def _gated(self, gate: StochasticGateModule, value: Value, input: Tensor) -> Value:
        slots, met = self.followed.slots, self.followed.gates.get(id(gate))
        open_, axis = gate_positions(gate, value, input)
        if axis is None or (id(gate) in self.followed.gates and met is None):
            slots.need_all(value)
            if met is not None:
                slots.need(met.before)
                slots.need(met.after)
            self.followed.gates[id(gate)] = None
            return Value.opaque(input.ndim)
        if met is None:
            met = GateSlots(open_, axis, input.ndim, slots.new(len(open_)), slots.new(len(open_)))
            slots.join(met.before[open_], met.after[open_])
            self.followed.gates[id(gate)] = met
        if (met.dim, met.ndim, len(met.open)) != (axis, input.ndim, len(open_)):
            for ids in (met.before, met.after):  # One replacement must serve all calls.
                slots.need(ids)
            slots.need_all(value)
            self.followed.gates[id(gate)] = None
            return Value.opaque(input.ndim)
        arriving = value.slots[axis]
        if arriving is None:
            slots.need(met.before)
        else:
            slots.join(met.before, arriving)
        known = value.known[axis]
        known = np.full(len(open_), np.nan) if known is None else known
        result = Value(list(value.slots), [None] * input.ndim)
        result.slots[axis] = met.after
        result.known[axis] = np.where(open_, known, 0.0)
        return result


def gate_positions(
    gate: StochasticGateModule, value: Value, input: Tensor
) -> tuple[NDArray[np.bool_], int | None]:
    """For each position of the gates' axis, whether it is open; and the axis, if there is one."""
    open_ = gate.open_positions().cpu().numpy()
    if open_.ndim == 1:
        return open_, gate.dim % input.ndim
    if open_.ndim == 0 and value.axes():
        axis = value.axes()[0]
        return np.full(input.shape[axis], bool(open_)), axis
    return open_, None
