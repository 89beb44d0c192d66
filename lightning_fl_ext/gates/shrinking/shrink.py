"""Remove closed gates for good."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates.masked import MaskedModule
from lightning_fl_ext.gates.shrinking.cut import ShrinkError, cut, gates_of, settle_heads, settle_skips
from lightning_fl_ext.gates.shrinking.follow import follow, tensors_in
from lightning_fl_ext.gates.stochastic import StochasticGateModule

log = logging.getLogger(__name__)

_TOLERANCE = 1e-6  # of the largest output, in the run that compares


@torch.no_grad()
def shrink(
    module: nn.Module,
    example: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    keep: str | Sequence[str] = (),
) -> nn.Module:
    """Make a smaller module without the gates that have closed, and without what they closed.

    A gate whose probability is at most one half is closed. Its channels or features leave the gate and every
    layer around it: linear layers, convolutions (a group of a grouped one as a whole), BatchNorm, PReLU,
    embeddings, through elementwise functions, pooling, reshapes, concatenations and residual sums. Of a sum
    with other terms, or before a function that is not known, the width stays: there a plain module puts zeros
    in the place of what is gone. A constant that is left behind by a removed channel (the shift of a
    BatchNorm behind the gate) goes into the next bias. Attention loses whole heads, if their number is not
    spelled out; those of an ``nn.MultiheadAttention`` are not cut, but their weights become 0, and stay 0
    when it is trained on.

    The forward is run once, on `example`, to see which layer feeds which. Then the smaller module is compared
    with the gated one on the same example.

    Args:
        module: With `StochasticGateModule` layers. It is left as it is.
        example: Arguments of ``forward``, a tensor or a tuple: two examples or more, of the usual shape.
        kwargs: Keyword arguments of ``forward``.
        keep: Shell patterns of the names of gate layers whose width stays; their gates are fixed in place.

    Returns:
        A copy of the module, of the same class, in the same mode: in evaluation mode it gives the outputs of
        the module whose gates have ``evaluation="threshold"``. It holds nothing of this package, trains on,
        and its ``state_dict`` has the same names, without those of the gates. A layer that nothing is left
        of keeps one channel. The log tells which gates' widths could not be reduced, and if all are closed.

    Raises:
        ShrinkError: There are no gates; one has a `gater`, or is not called by ``forward``; the forward
            fails on the example, or returns no tensors, alone or in tuples, lists, mappings and dataclasses
            (in other objects none are looked for); or the smaller module gives other outputs, since something
            in it depends on a width in a way that cannot be seen.

    Example:
        >>> gate = StochasticGateModule(8)
        >>> _ = gate.logits.data.copy_(torch.tensor([3.0, -3, 3, -3, -3, -3, -3, -3]))
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), gate, nn.Linear(8, 1))
        >>> shrink(net, torch.ones(2, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
          (2): Identity()
          (3): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    small, left = shrunk(module, example, kwargs, keep)
    gates = gates_of(module).values()
    if not any(bool(gate.open_positions().any()) for gate in gates):
        log.warning(
            "all gates are closed, so what they gate is gone: no probability is above one half, the largest"
            " is %.2f. If that is not meant, train on until gates are decided",
            max((float(gate.probs.max()) for gate in gates), default=0.0),
        )
    if left:
        log.warning("closed gates that are fixed in place, without a smaller width: %s", ", ".join(left))
    return small


def shrunk(
    module: nn.Module, example: Any, kwargs: Mapping[str, Any] | None = None, keep: str | Sequence[str] = ()
) -> tuple[nn.Module, list[str]]:
    """Do as `shrink`, and name the gates that were fixed in place."""
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    args = example if isinstance(example, tuple) else (example,)
    with as_written():
        return _shrunk(module, args, dict(kwargs or {}), keep)


def as_written() -> AbstractContextManager[Any]:
    """Have what is compiled within a module run as it is written: else it runs past whoever follows it."""
    compiling = "torch._dynamo" in sys.modules  # or nothing is compiled, and it need not be loaded
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


def _shrunk(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], keep: str | Sequence[str]
) -> tuple[nn.Module, list[str]]:
    gated = _thresholded(module)
    expected, tolerance = _reference(gated, args, kwargs)
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)
    failure: Exception | str = ""
    for careful in (False, True):
        small = copy.deepcopy(gated)
        settle_skips(small, patterns, args, kwargs)
        left = settle_heads(small)
        followed = follow(small, args, kwargs, careful)
        left += cut(small, followed, patterns)
        failure = _difference(small, args, kwargs, expected, tolerance)
        if not failure:
            break
    else:
        raise ShrinkError(
            f"`shrink`: without its closed gates {type(module).__name__} does not give the same outputs:"
            f" {failure}. Something in its forward depends on a width, such as a reshape with a number or a"
            " slice, or is random, or cannot be followed (TorchScript, `torch.func.vmap`). Name the gates"
            " there by `keep=...`; their widths then stay."
        )
    modes = {name: part.training for name, part in module.named_modules()}
    for name, part in small.named_modules():
        part.training = modes.get(name, module.training)
    return small, left


def _thresholded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose gates are open or closed."""
    gates = gates_of(module)
    if not gates:
        raise ShrinkError(f"`shrink`: {type(module).__name__} holds no `StochasticGateModule`.")
    if isinstance(module, StochasticGateModule):
        raise ShrinkError("`shrink` needs the module around the gates; gates alone become plain by `bake()`.")
    if with_gater := [name for name, gate in gates.items() if gate.gater is not None]:
        raise ShrinkError(f"`shrink`: gates with a `gater` depend on the input: {', '.join(with_gater)}.")
    if masked := [name or "the module" for name, m in module.named_modules() if isinstance(m, MaskedModule)]:
        raise ShrinkError(f"`shrink` sees no weights behind masks: {', '.join(masked)}. `bake()` them first.")
    gated = copy.deepcopy(module).eval()
    for gate in gates_of(gated).values():
        gate.evaluation = "threshold"
    return gated


def _reference(
    gated: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Tensor], tuple[torch.dtype | None, float]]:
    """The outputs to be met, in float64 if the module can be run in it, and how closely."""
    try:
        native = list(tensors_in(gated(*args, **kwargs)))
    except Exception as error:
        raise ShrinkError(
            f"`shrink`: the forward of {type(gated).__name__} fails on the example:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not native:
        raise ShrinkError(f"`shrink`: {type(gated).__name__} must return tensors, or collections of them.")
    tensors = (*gated.parameters(), *gated.buffers(), *tensors_in(args), *tensors_in(kwargs), *native)
    if not any(tensor.is_complex() for tensor in tensors):  # whose imaginary parts would be gone
        with suppress(Exception):  # Such as a forward that casts: then in the dtype that it has.
            return _run(gated, args, kwargs, torch.float64), (torch.float64, _TOLERANCE)
    numbers = (t.dtype for t in native if t.is_floating_point() or t.is_complex())
    lowest = max((torch.finfo(dtype).eps for dtype in numbers), default=0.0)
    return native, (None, max(_TOLERANCE, 1e3 * lowest))


def _run(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype | None
) -> list[Tensor]:
    if dtype is None:
        return list(tensors_in(module(*args, **kwargs)))

    def cast(thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return thing.to(dtype) if thing.is_floating_point() else thing
        if isinstance(thing, Mapping):
            return {key: cast(item) for key, item in thing.items()}
        return type(thing)(map(cast, thing)) if type(thing) in (list, tuple) else thing

    return list(tensors_in(copy.deepcopy(module).to(dtype)(*cast(args), **cast(kwargs))))


def _difference(
    small: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    expected: list[Tensor],
    how: tuple[torch.dtype | None, float],
) -> str:
    """Say how the smaller module's outputs differ; nothing if they do not."""
    dtype, tolerance = how
    try:
        got = _run(small, args, kwargs, dtype)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    shapes = [[tuple(tensor.shape) for tensor in outputs] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        return f"expected shapes {shapes[0]}, got {shapes[1]}"
    for one, two in zip(map(_wide, expected), map(_wide, got), strict=True):
        if one.numel() and not torch.allclose(
            one, two, rtol=0.0, equal_nan=True, atol=tolerance * max(1.0, _largest(one))
        ):
            return f"they differ by {(one - two).abs().max().item():.3g}"
    return ""


def _wide(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def _largest(tensor: Tensor) -> float:
    finite = tensor.abs()
    return float(finite[finite.isfinite()].max()) if bool(finite.isfinite().any()) else 0.0
