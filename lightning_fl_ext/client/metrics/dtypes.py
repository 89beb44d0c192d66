"""Metrics that count in the dtype they were made with, whatever the precision of the Trainer.

Torchmetrics says that only ``Metric.set_dtype`` changes the dtype of a metric's states. ``Module.to(dtype)``
does so too, and by it Lightning converts a module for ``precision="bf16-true"`` and its like. A sum in
bfloat16 stops growing at 256 times its summands, and thresholds in bfloat16 are others than the server's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric


@dataclass(frozen=True)
class MetricDtypes:
    """What a metric was made with, before a Trainer converts it.

    Attributes:
        dtype: The metric's own.
        defaults: The floating states' default values, by name.
        buffers: The floating buffers that are no state, such as thresholds.
    """

    dtype: torch.dtype
    defaults: dict[str, Tensor]
    buffers: dict[str, Tensor]


def note_dtypes(module: nn.Module) -> dict[str, MetricDtypes]:
    """Note the dtypes of all metrics in a module.

    Args:
        module: Not yet converted.

    Returns:
        By the metrics' names in the module.
    """
    return {
        name: MetricDtypes(
            metric.dtype,
            {key: value.clone() for key, value in _states(metric).items()},
            {key: value.clone() for key, value in _buffers(metric).items()},
        )
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def restore_dtypes(module: nn.Module, noted: dict[str, MetricDtypes]) -> None:
    """Bring the metrics of a module back to what was noted; those made since, from half precision to single.

    What metrics are made of beside states and buffers, such as a network, stays converted.

    Args:
        module: As the Trainer has converted and placed it.
        noted: By :func:`note_dtypes`.
    """
    for name, metric in module.named_modules():
        if not isinstance(metric, Metric):
            continue
        then = noted.get(name)
        for key, default in _states(metric).items():
            kept = then.defaults.get(key) if then else None
            if kept is None and default.dtype in (torch.float16, torch.bfloat16):
                kept = default.float()
            if kept is not None and kept.dtype != default.dtype:
                metric._defaults[key] = kept.to(default.device)
                if isinstance(value := getattr(metric, key), Tensor):
                    setattr(metric, key, value.to(kept.dtype))
                metric._dtype = then.dtype if then else torch.float32
        for key, buffer in _buffers(metric).items():
            if then and key in then.buffers and then.buffers[key].dtype != buffer.dtype:
                setattr(metric, key, then.buffers[key].to(buffer.device))


def _states(metric: Metric) -> dict[str, Tensor]:
    states = metric._defaults.items()
    return {key: value for key, value in states if isinstance(value, Tensor) and value.is_floating_point()}


def _buffers(metric: Metric) -> dict[str, Tensor]:
    buffers = metric.named_buffers(recurse=False)
    return {key: value for key, value in buffers if value.is_floating_point() and key not in metric._defaults}
