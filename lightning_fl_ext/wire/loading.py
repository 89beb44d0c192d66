"""Loading what travelled into a module, so that it computes with what it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

_ITERATIONS = 30
_LENGTH = 1e-4
"""By how much the length of a mean of singular vectors may fall short of 1, which their angles tell."""


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a module, leaving alone what is not among them.

    Args:
        module: Of which the tensors are entries.
        tensors: By name; maybe a mean of several modules'.
    """
    module.load_state_dict(tensors, strict=False)
    settle_spectral_norms(module)


def settle_spectral_norms(module: nn.Module) -> None:
    """Have spectral norms measure a module's weights anew, where their singular vectors were averaged.

    A spectral norm divides a weight by its largest singular value, which it takes from two vectors among its
    buffers; in evaluation it takes these as they are. A mean of such vectors has a length below 1 and fits no
    weight, so that the weight comes out too large, by any factor. A vector of length 1 is left alone.

    Args:
        module: Maybe with ``spectral_norm`` on some of its weights, in either of torch's ways.
    """
    with torch.no_grad():
        for vector, iterate in _power_iterations(module):
            if not vector.is_meta and abs(float(vector.norm()) - 1) > _LENGTH:
                for _ in range(_ITERATIONS):
                    iterate()


def _power_iterations(module: nn.Module) -> Iterator[tuple[Tensor, Callable[[], Any]]]:
    """Give each spectral norm's left singular vector, and what brings it nearer."""
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                yield getattr(part, f"{hook.name}_u"), partial(hook.compute_weight, part, True)
        if not (isinstance(part, parametrize.ParametrizationList) and any(map(_is_spectral, part))):
            continue
        names = ("original",) if part.is_tensor else (f"original{i}" for i in range(part.ntensors))
        weight = tuple(getattr(part, name) for name in names)
        for step in part:
            if _is_spectral(step):
                yield step.get_buffer("_u"), partial(_call, step, True, weight[0])
            weight = (_call(step, False, *weight),)


def _is_spectral(step: Any) -> bool:
    return hasattr(step, "_power_method") and isinstance(getattr(step, "_u", None), Tensor)


def _call(step: nn.Module, training: bool, *weight: Tensor) -> Any:
    """Call a parametrization; a spectral norm that is in training brings its vectors nearer."""
    before = step.training
    try:
        return step.train(training)(*weight)
    finally:
        step.train(before)
