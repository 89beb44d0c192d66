"""What single operations do to slots, by the operation's name; those on elements are here.

A rule returns what is known of the result, or None for what it does not know: then all that the operation
reads must stay as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_fl_ext.gates.shrinking import layers, shapes
from lightning_fl_ext.gates.shrinking.calls import Call, Rule, unknown
from lightning_fl_ext.gates.shrinking.slots import Ids, Known, Value


def _elementwise(call: Call) -> Value | None:
    """Operands are broadcast: along each axis those that have slots there are joined."""
    if any(isinstance(part, list | tuple) for part in call.args):
        return None
    shape = call.output.shape
    operands = [part for part in (*call.args, *call.kwargs.values()) if isinstance(part, Tensor)]
    result = Value.opaque(len(shape))
    for axis, size in enumerate(shape):
        ids: list[Ids | None] = []
        for operand in operands:
            own = axis - len(shape) + operand.ndim
            if own >= 0 and operand.shape[own] == size:
                ids.append(call.value(operand).slots[own])
            elif own >= 0:
                call.slots.need(call.value(operand).slots[own])
        found = [one for one in ids if one is not None]
        if size == 1 or len(found) < len(ids) or not found:
            for one in found:
                call.slots.need(one)
            continue
        result.slots[axis] = call.slots.join(*found)
        result.known[axis] = _computed(call, axis, size)
    return result


def _dropout(call: Call) -> Value | None:
    """Outside training, nothing; with ``training=True`` at all times, random."""
    result = _same(call)
    if result is not None and call.arguments("input", "p", "training")[2] is not False:
        result.known = [None] * len(result.known)
    return result


def _computed(call: Call, axis: int, size: int) -> Known | None:
    """Compute what the result holds along an axis: NaN comes out wherever an operand is not known."""

    def vector(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        own = axis - call.output.ndim + part.ndim
        known = call.value(part).known[own] if own >= 0 else None
        return torch.from_numpy(unknown(size) if known is None else known.copy())

    args = [vector(part) for part in call.args]
    kwargs = {name: vector(part) for name, part in call.kwargs.items()}
    try:
        computed = call.func(*args, **kwargs)
    except (RuntimeError, TypeError):
        return None
    if computed.is_complex():
        return None
    computed = computed.double().cpu().numpy()
    if call.func.__name__.strip("_") in ("mul", "imul", "rmul", "multiply"):
        for part in args:
            if isinstance(part, Tensor):
                computed = np.where(part.numpy() == 0, 0.0, computed)
    return np.asarray(computed)


def _same(call: Call) -> Value | None:
    """The result is the input, in another dtype, place or memory."""
    value = call.value(call.args[0])
    return Value(list(value.slots), list(value.known))


ELEMENTWISE = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid hardtanh"
    " hardswish hardsigmoid tanhshrink abs neg square exp add sub mul multiply div true_divide"
    " __iadd__ __isub__ __imul__ __rsub__ __radd__ __rmul__ __neg__ __add__ __sub__ __mul__ __truediv__"
)


_SAME = "to float double half bfloat16 contiguous clone detach cpu cuda type_as"


RULES: dict[str, Rule] = {
    "linear": layers.linear,
    "matmul": layers.matmul,
    "batch_norm": layers.batch_norm,
    "prelu": layers.prelu,
    "scaled_dot_product_attention": layers.attention,
    "cat": shapes.cat,
    "concat": shapes.cat,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), _dropout),
    "embedding": layers.embedding,
    "pad": shapes.pad,
    "interpolate": shapes.interpolate,
    "__getitem__": shapes.indexed,
    "transpose": shapes.transpose,
    "permute": shapes.permute,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), layers.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.conv_transpose),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), shapes.reduced),
    **dict.fromkeys(("flatten", "unflatten", "view", "reshape", "unsqueeze", "squeeze"), shapes.reshape),
    **{
        f"{kind}_pool{spatial}d": shapes.local(spatial)
        for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
        for spatial in (1, 2, 3)
    },
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_SAME.split(), _same),
}
"""By the name of the function, without trailing underscores."""
