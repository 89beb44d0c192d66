"""What layers with weights do to slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_fl_ext.gates.shrinking.calls import Call, unknown, zeros_only
from lightning_fl_ext.gates.shrinking.slots import Contraction, Known, Value


def linear(call: Call) -> Value | None:
    """The last axis is summed over."""
    x, weight, bias = call.arguments("input", "weight", "bias")
    return _contract(call, x, x.ndim - 1, weight, (1, 0), bias, padded=False)


def matmul(call: Call) -> Value | None:
    """A product with a matrix from the right."""
    x, weight = call.args[:2]
    if weight.ndim != 2 or x.ndim < 2 or len(call.value(weight).axes()) != 2:
        return None
    return _contract(call, x, x.ndim - 1, weight, (0, 1), None, padded=False)


def _contract(
    call: Call, x: Tensor, axis: int, weight: Tensor, axes: tuple[int, int], bias: Tensor | None, padded: bool
) -> Value | None:
    """Sum over an axis of x and one of the weight; the weight's other axis stands in its place."""
    value, weighed, slots = call.value(x), call.value(weight), call.slots
    read, written = (weighed.slots[a] for a in axes)
    if read is None or written is None:
        return None
    ids, known = value.slots[axis], value.known[axis]
    if ids is None:
        slots.need(read)
    else:
        slots.join(ids, read)
    known = unknown(len(read)) if known is None else known
    added: Known | None = np.zeros(len(written))
    if bias is not None:
        told = call.value(bias)
        if told.slots[0] is None:
            slots.need(written)
        else:
            slots.join(written, told.slots[0])
        added = told.known[0]
    foldable = bias if not padded else None
    slots.contract(Contraction(read, known, written, weight, axes[0], foldable))
    result = Value(list(value.slots), [None] * x.ndim)
    result.slots[axis] = written
    result.known[axis] = added if bool((known == 0).all()) else None
    return result


def conv(call: Call) -> Value | None:
    """The channels are summed over, or by group."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    x, weight, bias, _, padding, _, groups = call.arguments(*names)
    axis = x.ndim - weight.ndim + 1  # 0 without a batch
    value = call.value(x)
    for place in range(axis + 1, x.ndim):
        call.slots.need(value.slots[place])
    padded = padding not in (None, 0, "valid") and any(
        padding if isinstance(padding, Sequence) else (padding,)
    )
    if groups not in (None, 1):
        result = _grouped(call, x, axis, weight, bias, groups)
    else:
        result = _contract(call, x, axis, weight, (1, 0), bias, padded)
    if result is not None:
        result.slots[axis + 1 :] = [None] * (x.ndim - axis - 1)
    return result


def _grouped(
    call: Call, x: Tensor, axis: int, weight: Tensor, bias: Tensor | None, groups: int
) -> Value | None:
    """A group of channels is kept or removed as a whole, with what comes out of it."""
    value, weighed, slots = call.value(x), call.value(weight), call.slots
    written, read = weighed.slots[0], value.slots[axis]
    if written is None:
        return None
    if read is None:
        slots.need(written)
        slots.need(weighed.slots[1])
        return Value.opaque(x.ndim)
    slots.need(weighed.slots[1])
    call.grouped.add(id(weight))
    inward, outward = read.reshape(groups, -1), written.reshape(groups, -1)
    for ids in (*inward.T, *outward.T):
        slots.join(inward[:, 0], ids)
    added: Known | None = np.zeros(len(written))
    if bias is not None:
        told = call.value(bias)
        if told.slots[0] is None:
            return None
        slots.join(written, told.slots[0])
        added = told.known[0]
    known = value.known[axis]
    result = Value([*value.slots[:axis], written, *([None] * (x.ndim - axis - 1))], [None] * x.ndim)
    if known is not None and added is not None:
        silent = (known.reshape(groups, -1) == 0).all(1).repeat(outward.shape[1])
        result.known[axis] = np.where(silent, added, np.nan)
    return result


def conv_transpose(call: Call) -> Value | None:
    """The channels are summed over."""
    names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
    x, weight, bias, *_, groups = call.arguments(*names)
    axis = x.ndim - weight.ndim + 1
    if groups not in (None, 1):
        return None
    value = call.value(x)
    for place in range(axis + 1, x.ndim):
        call.slots.need(value.slots[place])
    result = _contract(call, x, axis, weight, (0, 1), bias, padded=True)
    if result is not None:
        result.slots[axis + 1 :] = [None] * (x.ndim - axis - 1)
    return result


def batch_norm(call: Call) -> Value | None:
    """Channels go with their statistics and weights."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    x, mean, var, weight, bias, training, _, eps = call.arguments(*names)
    value = call.value(x)
    if training or mean is None or var is None or x.ndim < 2:
        return None
    result = _per_channel(call, value, [t for t in (mean, var, weight, bias) if t is not None])
    known = value.known[1]
    if known is not None and result.slots[1] is not None:
        row = torch.from_numpy(known).to(x.device)[None]
        given = (None if t is None else t.double() for t in (mean, var, weight, bias))
        mean, var, weight, bias = given
        computed = F.batch_norm(row, mean, var, weight, bias, False, 0.0, 1e-5 if eps is None else eps)
        result.known[1] = computed[0].cpu().numpy()
    return result


def attention(call: Call) -> Value | None:
    """Heads, on the third axis from the last, go together; what is within them stays."""
    query, key, value, mask = call.arguments("query", "key", "value", "attn_mask")
    told = [call.value(tensor) for tensor in (query, key, value)]
    heads = [one.slots[-3] if len(one.slots) > 3 else None for one in told]
    by_head = mask is not None and mask.ndim > 2 and mask.shape[-3] != 1
    if by_head or any(one is None or len(one) != query.shape[-3] for one in heads):
        return None
    for one in told:
        for axis, ids in enumerate(one.slots):
            if axis != len(one.slots) - 3:
                call.slots.need(ids)
    result = Value.opaque(call.output.ndim)
    result.slots[-3] = call.slots.join(*(one for one in heads if one is not None))
    return result


def prelu(call: Call) -> Value | None:
    """Channels go with their slopes, if each has its own."""
    x, weight = call.arguments("input", "weight")
    value = call.value(x)
    if weight.numel() == 1:
        call.slots.need_all(call.value(weight))
        result = Value(list(value.slots), [None] * x.ndim)
    else:
        result = _per_channel(call, value, [weight])
    result.known = [zeros_only(known) for known in value.known]
    return result


def _per_channel(call: Call, value: Value, vectors: list[Tensor]) -> Value:
    """Axis 1 goes with the only axis of some vectors."""
    result = Value(list(value.slots), [None] * len(value.slots))
    ids = [call.value(vector).slots[0] for vector in vectors]
    if value.slots[1] is None or any(one is None for one in ids):
        for one in (value.slots[1], *ids):
            call.slots.need(one)
        result.slots[1] = None
    else:
        call.slots.join(value.slots[1], *(one for one in ids if one is not None))
    return result


def embedding(call: Call) -> Value | None:
    """The features of a table."""
    index, weight = call.arguments("input", "weight")
    rows, columns = call.value(weight).slots
    call.slots.need(rows)
    return Value([*([None] * index.ndim), columns], [None] * (index.ndim + 1))
