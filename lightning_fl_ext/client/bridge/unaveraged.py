"""What a weight averaging callback is to leave alone, since it is no weight that was trained."""

from __future__ import annotations

import torch
from torchmetrics import Metric


class Unaveraged:
    """Keeps counters, and what a fit does not change, from being averaged.

    Lightning's ``WeightAveraging`` averages every buffer and parameter. A whole number is cut, and a constant
    drifts by a bit with each step, since 0.9 · x + 0.1 · x is not x: frozen weights, a normalization's
    mean, the thresholds of a metric, by whose bits a server knows that two clients count the same.

    Args:
        module: As the fit begins.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._before = {name: tensor.detach().clone() for name, tensor in _untrained(module).items()}
        self._raw: dict[str, torch.Tensor] = {}

    def settle_metrics(self, module: torch.nn.Module) -> None:
        """Give metrics their constants back, while a validation has the averaged model in place."""
        for name, metric in module.named_modules():
            if isinstance(metric, Metric):
                for own, buffer in metric.named_buffers(recurse=False):
                    _put(buffer, self._before.get(f"{name}.{own}"))

    def note(self, module: torch.nn.Module) -> None:
        """Note what is to stay, when training has ended and the averaged weights are not in place yet."""
        self._raw = {
            name: tensor.detach().clone()
            for name, tensor in _untrained(module).items()
            if not (tensor.is_floating_point() or tensor.is_complex())
            or ((before := self._before.get(name)) is not None and torch.equal(before, tensor))
        }

    def put_back(self, module: torch.nn.Module) -> None:
        """Give the module what was noted, when the averaged weights are in place."""
        for name, tensor in _untrained(module).items():
            _put(tensor, self._raw.get(name))


def _untrained(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(module.named_buffers())}


def _put(tensor: torch.Tensor, value: torch.Tensor | None) -> None:
    if value is not None and value.shape == tensor.shape:
        tensor.data.copy_(value)
