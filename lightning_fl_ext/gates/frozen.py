"""The frozen side of a masked module: which parameters, built from a seed, named by a digest, and guarded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_fl_ext.gates.bernoulli import at_least_float32
from lightning_fl_ext.results.digest import digest

Parameters = Mapping[str, nn.Parameter]


def select_parameters(
    module: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str]
) -> dict[str, nn.Parameter]:
    """The floating parameters that the patterns choose, each once, under its first name.

    A parameter with several names is chosen if one of them is included and none excluded.

    Raises:
        TypeError: `module` is not a module.
        ValueError: They choose none; a pattern matches no parameter; or a parameter has no values yet.
    """
    _check_module(module)
    included = (include,) if isinstance(include, str) else tuple(include)
    excluded = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    if empty := [names[0] for p, names in aliases.items() if p.is_meta or is_lazy(p)]:
        raise ValueError(
            f"`module` has parameters without values yet: {', '.join(empty)}. Build it on a real device, and"
            " call lazy modules once on a batch, before masking it."
        )
    everything = [name for names in aliases.values() for name in names]
    for argument, patterns in (("include", included), ("exclude", excluded)):
        for pattern in patterns:
            if everything and not _matches(everything, (pattern,)):
                raise ValueError(
                    f"`{argument}`: the pattern {pattern!r} matches none of the module's parameters:"
                    f" {', '.join(everything)}."
                )
    selected = {
        names[0]: parameter
        for parameter, names in aliases.items()
        if parameter.is_floating_point() and _matches(names, included) and not _matches(names, excluded)
    }
    if not selected:
        raise ValueError(
            f"`include`={include!r} and `exclude`={exclude!r} select no floating parameter to mask. "
            f"The module's are: {', '.join(names[0] for names in aliases.values()) or 'none'}."
        )
    return selected


def _check_module(module: object) -> None:
    if not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else repr(module)
        raise TypeError(f"`module` must be a module, such as `nn.Linear(4, 2)`. Got {what}.")


def holders(module: nn.Module, parameters: Parameters) -> dict[str, tuple[str, ...]]:
    """For each parameter one name in every module that holds it: several if it is tied.

    A module that is used twice counts once. To `functional_call` its second name would be another place to
    put a tensor into, and to put the parameter back into afterwards (``tie_weights`` does that wrong).
    """
    names: dict[nn.Parameter, list[str]] = {}
    for prefix, submodule in module.named_modules():
        for leaf, parameter in submodule._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(f"{prefix}.{leaf}" if prefix else leaf)
    return {name: tuple(names[parameter]) for name, parameter in parameters.items()}


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


@torch.no_grad()
def signed_constant_(parameters: Parameters, generator: torch.Generator) -> None:
    r"""Set parameters to :math:`\pm e/\sqrt{\text{fan\_in}}` (Isik et al. 2023, appendix on initialisation).

    fan_in is that of ``torch.nn.init``: the elements of a row; of a vector, its length. Vectors that are all
    one, as the weights of normalisation layers, stay.
    """
    for weight in parameters.values():
        if weight.ndim < 2 and bool((weight == 1).all()):
            continue
        signs = 2 * torch.randint(0, 2, weight.shape, generator=generator) - 1
        fan_in = math.prod(weight.shape[1:]) if weight.ndim > 1 else weight.numel()
        weight.copy_(signs * (math.e / math.sqrt(max(1, fan_in))))


def freeze(module: nn.Module, parameters: Parameters) -> None:
    """Stop the parameters' gradients, and make their layers raise when called with them unmasked."""
    leaves: dict[str, str] = {}
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for names in holders(module, parameters).values():
        for name in names:
            owner, _, leaf = name.rpartition(".")
            leaves.setdefault(owner, leaf)
    for owner, leaf in leaves.items():
        module.get_submodule(owner).register_forward_pre_hook(partial(_refuse_dense, name=leaf))


def thaw(module: nn.Module, parameters: Parameters) -> None:
    """Undo :func:`freeze`."""
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for submodule in module.modules():
        hooks = submodule._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if getattr(hook, "func", None) is _refuse_dense]:
            del hooks[key]


def _refuse_dense(module: nn.Module, args: tuple[Any, ...], *, name: str) -> None:
    if isinstance(module._parameters[name], nn.Parameter):  # Masked, it is a tensor put in its place.
        raise RuntimeError(
            f"`{type(module).__name__}` inside a `MaskedModule` was called past it, with the dense weights "
            "that are never trained. Call the `MaskedModule` itself, or take a plain module by `bake()`."
        )


def frozen_digest(parameters: Parameters) -> Tensor:
    """SHA-256 over names, shapes and values, as uint8 of shape (32,)."""
    arrays = {
        name: parameter.detach().to("cpu", at_least_float32(parameter.dtype)).numpy()
        for name, parameter in parameters.items()
    }
    return torch.tensor(list(bytes.fromhex(digest(arrays))), dtype=torch.uint8)
