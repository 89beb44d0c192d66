"""Cut what is not needed out of a module that was followed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.gates.heads import HeadGatedAttention, bake_heads
from lightning_fl_ext.gates.hooks import CHILD, skipped_or_run, without_gate
from lightning_fl_ext.gates.shrinking.follow import Followed, GateSlots
from lightning_fl_ext.gates.shrinking.plain import closed_for_good, first_argument, narrowed
from lightning_fl_ext.gates.stochastic import StochasticGateModule

_WIDTHS = {
    "in_features": (nn.Linear, "weight", 1),
    "out_features": (nn.Linear, "weight", 0),
    "num_parameters": (nn.PReLU, "weight", 0),
    "embedding_dim": (nn.Embedding, "weight", 1),
}


class ShrinkError(LightningFLError):
    """A module whose closed gates cannot be removed."""


def gates_of(module: nn.Module) -> dict[str, StochasticGateModule]:
    """The gate layers within a module, by name."""
    return {n: m for n, m in module.named_modules() if isinstance(m, StochasticGateModule)}


def cut(small: nn.Module, followed: Followed, keep: Sequence[str]) -> list[str]:
    """Cut parameters and buffers, replace the gates; name those that have closed and could not be cut."""
    slots, gates = followed.slots, gates_of(small)
    if absent := [name for name, gate in gates.items() if id(gate) not in followed.gates]:
        raise ShrinkError(
            f"`shrink`: `forward` does not call the gates {', '.join(absent)} on the example, so what they"
            " close cannot be seen."
        )
    for name, gate in gates.items():
        met = followed.gates[id(gate)]
        if met is not None and any(fnmatchcase(name, pattern) for pattern in keep):
            slots.need(met.before)
            slots.need(met.after)
    axes = [
        ids for _, value in followed.leaves.values() for ids in value.slots if ids is not None and len(ids)
    ]
    axes += [ids for met in followed.gates.values() if met is not None for ids in (met.before, met.after)]
    _settle_biases(followed)
    kept = slots.kept(axes)
    _fold(followed, kept)
    smaller = {
        key: _selected(tensor, [kept[ids] for ids in value.slots if ids is not None])
        for key, (tensor, value) in followed.leaves.items()
        if not all(kept[ids].all() for ids in value.slots if ids is not None)
    }
    left = []
    made = {}
    for name, gate in gates.items():
        if id(gate) not in made:
            made[id(gate)] = _replacement(gate, followed.gates[id(gate)], kept)
        closed, met = dict(made[id(gate)].named_buffers()).get("closed"), followed.gates[id(gate)]
        if closed is not None and (met is None or closed.numel() > 1 or len(met.open) == 1):
            left.append(name)  # one of several closed channels stays where nothing else would
    for part in small.modules():
        _narrow(part, smaller, followed.grouped)
        for name, child in part._modules.items():
            if id(child) in made:
                part._modules[name] = made[id(child)]
        if isinstance(dict(part.named_children()).get(CHILD), nn.Identity):
            without_gate(part)
    return left


def settle_skips(
    small: nn.Module, keep: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Take out modules that a closed gate skips, and the gates of those that an open one runs.

    A module that returns something besides what is skipped (its attention, its last state) stays, to
    compute that.
    """
    modules = dict(small.named_modules())
    closed = {}
    for name, module in modules.items():
        gate = skipped_or_run(module)
        if gate is None or any(fnmatchcase(f"{name}.{CHILD}", pattern) for pattern in keep):
            continue
        if bool(gate.open_positions()):
            without_gate(module)
        else:
            closed[name] = module
    if not closed:
        return
    returned: dict[int, list[Any]] = {id(module): [] for module in closed.values()}
    hooks = [
        module.register_forward_hook(lambda module, _, output: returned[id(module)].append(output))
        for module in closed.values()
    ]
    small(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    for module in closed.values():
        items = {len(out) if isinstance(out, tuple) else 0 for out in returned[id(module)]}
        besides = [out[1:] for out in returned[id(module)] if isinstance(out, tuple)]
        if len(items) > 1 or any(item is not None for rest in besides for item in rest):
            continue
        for part in modules.values():
            for child_name, child in part._modules.items():
                if child is module:
                    part._modules[child_name] = first_argument(module, max(items, default=0))


def settle_heads(small: nn.Module) -> list[str]:
    """Make attentions whose heads have gates plain ones; name the gates that have closed."""
    gated = {name: m for name, m in small.named_modules() if isinstance(m, HeadGatedAttention)}
    return [f"{name}.{CHILD}".lstrip(".") for name, attention in gated.items() if bake_heads(attention)]


def _replacement(gate: StochasticGateModule, met: GateSlots | None, kept: NDArray[np.bool_]) -> nn.Module:
    if met is not None:
        return narrowed(met.open, kept[met.before], kept[met.after], met.dim, met.ndim)
    open_ = gate.open_positions()
    if bool(open_.all()):
        return nn.Identity()
    if gate.dim < 0 or open_.ndim == 0:
        return closed_for_good(~open_.reshape(open_.shape + (1,) * (-1 - gate.dim if open_.ndim else 0)))
    return gate.bake("threshold")


def _settle_biases(followed: Followed) -> None:
    """A known number can be added to a bias only if the weight and the bias serve one contraction."""
    times: dict[int, int] = {}
    for one in followed.slots.contractions:
        for tensor in (one.weight, one.bias):
            if tensor is not None:
                times[id(tensor)] = times.get(id(tensor), 0) + 1
    for one in followed.slots.contractions:
        if one.bias is not None and max(times[id(one.weight)], times[id(one.bias)]) > 1:
            one.bias = None


def _fold(followed: Followed, kept: NDArray[np.bool_]) -> None:
    """Add what removed slots held, times their weights, to the biases."""
    for one in followed.slots.contractions:
        gone = ~kept[one.read] & ~np.isnan(one.known) & (one.known != 0)
        if one.bias is not None and gone.any():
            wide = torch.complex128 if one.weight.is_complex() else torch.float64
            held = torch.from_numpy(np.where(gone, np.nan_to_num(one.known), 0.0)).to(one.weight.device, wide)
            change = one.weight.to(wide).movedim(one.axis, -1) @ held
            one.bias.add_(change.reshape(len(one.bias), -1).sum(1).to(one.bias.dtype))


def _selected(tensor: Tensor, kept: list[NDArray[np.bool_]]) -> Tensor:
    for axis, keep in enumerate(kept):
        if not keep.all():
            chosen = torch.from_numpy(np.flatnonzero(keep)).to(tensor.device)
            tensor = tensor.index_select(axis, chosen)
    return tensor


def _narrow(part: nn.Module, smaller: dict[int, Tensor], grouped: set[int]) -> None:
    """Put the smaller tensors into a module, and its widths right."""
    before = {name: id(p) for name, p in part._parameters.items() if p is not None}
    changed = False
    for name, parameter in list(part._parameters.items()):
        if parameter is not None and id(parameter) in smaller:
            found = smaller[id(parameter)]
            if not isinstance(found, nn.Parameter):  # tied parameters stay tied
                found = nn.Parameter(found, requires_grad=parameter.requires_grad)
                smaller[id(parameter)] = found
            part._parameters[name] = found
            changed = True
    for name, buffer in list(part._buffers.items()):
        if buffer is not None and id(buffer) in smaller:
            part._buffers[name] = smaller[id(buffer)]
            changed = True
    if not changed:
        return
    if isinstance(part, nn.modules.conv._ConvNd):
        transposed = isinstance(part, nn.modules.conv._ConvTransposeNd)
        if before["weight"] in grouped:
            per_group = part.out_channels // part.groups, part.in_channels // part.groups
            part.groups = len(part.weight) // per_group[0]
            part.out_channels, part.in_channels = (part.groups * count for count in per_group)
        else:
            out, into = (1, 0) if transposed else (0, 1)
            part.out_channels, part.in_channels = part.weight.shape[out], part.weight.shape[into]
    elif isinstance(part, nn.modules.batchnorm._BatchNorm):
        for tensor in (part.weight, part.running_mean):
            if tensor is not None:
                part.num_features = len(tensor)
    for attribute, (kind, name, axis) in _WIDTHS.items():
        if isinstance(part, kind):
            setattr(part, attribute, getattr(part, name).shape[axis])
