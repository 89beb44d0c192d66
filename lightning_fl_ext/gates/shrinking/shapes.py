"""What pooling, reductions, and changes of shape do to slots."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lightning_fl_ext.gates.shrinking.calls import Call, Rule, unknown, zeros_only
from lightning_fl_ext.gates.shrinking.slots import Value


def local(spatial: int) -> Rule:
    """Pooling and the like: the last axes change, the others go as they are."""

    def rule(call: Call) -> Value | None:
        value = call.value(call.arguments("input")[0])
        return _lead(call, value, len(value.slots) - spatial)

    return rule


def _lead(call: Call, value: Value, count: int) -> Value:
    """The first axes go as they are, of the others nothing can be removed. Zeros stay zeros."""
    rest = len(value.slots) - count
    for ids in value.slots[count:]:
        call.slots.need(ids)
    known = [zeros_only(one) for one in value.known[:count]]
    return Value([*value.slots[:count], *([None] * rest)], [*known, *([None] * rest)])


def interpolate(call: Call) -> Value | None:
    """The axes behind the channels change."""
    return _lead(call, call.value(call.arguments("input")[0]), 2)


def pad(call: Call) -> Value | None:
    """The last axes get longer, by zeros."""
    x, pad, _, number = call.arguments("input", "pad", "mode", "value")
    if number not in (None, 0):
        return None
    return _lead(call, call.value(x), x.ndim - (len(pad) + 1) // 2)


def reduced(call: Call) -> Value | None:
    """Some axes are summed up."""
    x, dims, keepdim = call.arguments("input", "dim", "keepdim")
    if dims is None:
        return None
    gone = {d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)}
    value = call.value(x)
    result = Value([], [])
    for axis, ids in enumerate(value.slots):
        if axis in gone:
            call.slots.need(ids)
        if axis not in gone or keepdim:
            result.slots.append(None if axis in gone else ids)
            result.known.append(None if axis in gone else zeros_only(value.known[axis]))
    return result


def _permuted(call: Call, order: Sequence[int]) -> Value:
    value = call.value(call.args[0])
    return Value([value.slots[axis] for axis in order], [value.known[axis] for axis in order])


def transpose(call: Call) -> Value | None:
    """Two axes change places."""
    _, *axes = call.arguments("input", "dim0", "dim1")
    first, second = (axis % call.output.ndim for axis in axes)
    order = list(range(call.output.ndim))
    order[first], order[second] = order[second], order[first]
    return _permuted(call, order)


def permute(call: Call) -> Value | None:
    """All axes change places."""
    dims = call.kwargs.get("dims", _sizes(call.args[1:]))
    return _permuted(call, [axis % call.output.ndim for axis in dims])


def indexed(call: Call) -> Value | None:
    """Numbers and slices: axes that are taken whole go as they are, of the others nothing can be removed."""
    x, index = call.args
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is ... or type(part) in (int, slice) for part in parts):
        return None
    left = x.ndim - sum(part is not None and part is not ... for part in parts)
    place = next((i for i, part in enumerate(parts) if part is ...), len(parts))
    parts[place : place + 1] = [slice(None)] * left
    value, result, axis = call.value(x), Value([], []), 0
    for part in parts:
        whole = part == slice(None)
        if part is None or isinstance(part, slice):
            result.slots.append(value.slots[axis] if whole else None)
            result.known.append(value.known[axis] if whole else None)
        if part is not None:
            call.slots.need(None if whole else value.slots[axis])
            axis += 1
    return result


def cat(call: Call) -> Value | None:
    """One axis is put together from several."""
    tensors, dim = call.arguments("tensors", "dim")
    axis = (dim or 0) % call.output.ndim
    values = [call.value(tensor) for tensor in tensors]
    if any(len(value.slots) != call.output.ndim for value in values):
        return None
    result = Value.opaque(call.output.ndim)
    for place in range(call.output.ndim):
        ids = [value.slots[place] for value in values]
        found = [one for one in ids if one is not None]
        if place == axis and found:
            whole = []
            for one, tensor in zip(ids, tensors, strict=True):
                if one is None:
                    one = call.slots.new(tensor.shape[axis])
                    call.slots.need(one)
                whole.append(one)
            result.slots[axis] = np.concatenate(whole)
            known = (value.known[axis] for value in values)
            filled = [unknown(len(o)) if k is None else k for o, k in zip(whole, known, strict=True)]
            result.known[axis] = np.concatenate(filled)
        elif len(found) == len(ids):
            result.slots[place] = call.slots.join(*found)
        else:
            for one in found:
                call.slots.need(one)
    return result


def reshape(call: Call) -> Value | None:
    """Axes that are merged keep the slots of one of them; one that is split, those of the part that is -1."""
    x = call.args[0]
    value, before, after = call.value(x), tuple(x.shape), tuple(call.output.shape)
    named = call.func.__name__ in ("view", "reshape") and -1 not in _sizes(call.args[1:])[1:]
    result = Value.opaque(len(after))
    inferred = _inferred(call)
    joined: set[int] = set()
    for inward, outward in _blocks(before, after):
        tracked = [axis for axis in inward if value.slots[axis] is not None]
        if len(inward) == len(tracked) == 1 and len(outward) > 1 and inferred in outward:
            # As many heads as there are features for: each is kept or removed as a whole.
            parts = np.asarray(value.slots[tracked[0]]).reshape([after[axis] for axis in outward])
            heads = np.moveaxis(parts, outward.index(inferred), 0).reshape(after[inferred], -1)
            result.slots[inferred] = call.slots.join(*heads.T)
            joined.update(heads.flat)
            continue
        if len(tracked) != 1 or len(outward) != 1 or (len(inward) > 1 and named and call.careful):
            continue
        sizes = [before[axis] for axis in inward]
        place = [-1 if axis == tracked[0] else 1 for axis in inward]

        def spread(found: Any, place: list[int] = place, sizes: list[int] = sizes) -> Any:
            return None if found is None else np.broadcast_to(found.reshape(place), sizes).reshape(-1)

        result.slots[outward[0]] = spread(value.slots[tracked[0]])
        result.known[outward[0]] = spread(value.known[tracked[0]])
    passed = joined | {slot for ids in result.slots if ids is not None for slot in ids.tolist()}
    for ids in value.slots:
        if ids is not None and not passed.issuperset(ids.tolist()):
            call.slots.need(ids)
    return result


def _inferred(call: Call) -> int | None:
    """The axis of the result whose size is spelled as -1."""
    sizes, first = (), 0
    if call.func.__name__ == "unflatten":
        first, sizes = call.args[1] % call.args[0].ndim, tuple(call.args[2])
    elif call.func.__name__ in ("view", "reshape"):
        sizes = _sizes(call.args[1:])
    return first + sizes.index(-1) if -1 in sizes else None


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """The axes before and after a reshape that make each other up; those of size 1 are left out."""
    into, out = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after))
    while into and out:
        left, right = [into.pop(0)], [out.pop(0)]
        while (a := math.prod(before[axis] for axis in left)) != (
            b := math.prod(after[axis] for axis in right)
        ):
            if not (into if a < b else out):
                return  # of no elements
            (left if a < b else right).append((into if a < b else out).pop(0))
        yield left, right


def _sizes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if args and isinstance(args[0], Sequence) else args
