"""The values of a module's metrics by address, computed apart from the module."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from lightning_fl_ext.failures import described
from lightning_fl_ext.metrics.discovery import named_metrics, own_states


def copy_metrics(module: nn.Module) -> nn.Module:
    """Copy the metrics of a module, under their names, and nothing else of it.

    What is merged into the copy and computed there leaves the module's own metrics as they are. In a process
    of several, the copy computes for itself.

    Args:
        module: Any module.

    Returns:
        A module for `merge_metrics`.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> module = nn.ModuleDict({"layer": nn.Linear(2, 2), "val": nn.ModuleDict({"loss": MeanMetric()})})
        >>> [name for name, _ in copy_metrics(module).named_modules()]
        ['', 'val', 'val.loss']
    """
    alone = _metrics_only(module, {})
    for metric in named_metrics(alone).values():
        metric.sync_on_compute = metric._to_sync = False
    return alone


def computed_values(
    module: nn.Module, names: Collection[str] | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Compute every metric of `module` that has been updated.

    Args:
        module: Such as `copy_metrics` gives; the metrics forget values they have computed before.
        names: Compute only these metrics.

    Returns:
        Values by address: the metric's name (`"f1"`), with the index or key where it computes a vector or a
        dict (`"f1[3]"`); and for metrics that raised, why. Matrices and curves have no address.

    Example:
        >>> from torchmetrics.classification import MulticlassAccuracy
        >>> accuracy = MulticlassAccuracy(2, average=None)
        >>> accuracy.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        >>> computed_values(nn.ModuleDict({"acc": accuracy}))
        ({'acc[0]': 0.5, 'acc[1]': 1.0}, {})
    """
    values: dict[str, float] = {}
    problems: dict[str, str] = {}
    metrics = named_metrics(module)
    for metric in metrics.values():
        metric._computed = None
    with warnings.catch_warnings():
        # Merged states come without calls of `update`, and a wrapper has only those.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric .* was called before")
        for name, metric in metrics.items():
            if names is not None and name not in names:
                continue
            if not any(part._update_count for part in metric.modules() if _keeps_states(part)):
                continue
            try:
                values |= {f"{name}{index}": value for index, value in _flat(metric.compute()).items()}
            except Exception as error:  # a metric's own code, of whatever class: too few examples, say
                problems[name] = described(error)
    return values, problems


def _metrics_only(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if isinstance(module, Metric | MetricCollection):
        return copy.deepcopy(module, memo)  # one memo: a metric with two names stays one
    shell = nn.Module()
    for name, child in module.named_children():
        if any(isinstance(part, Metric) for part in child.modules()):
            shell.add_module(name, _metrics_only(child, memo))
    return shell


def _keeps_states(module: nn.Module) -> bool:
    return isinstance(module, Metric) and bool(own_states(module))


def _flat(computed: Any) -> dict[str, float]:
    if isinstance(computed, dict):
        scalars = {key: value for key, value in computed.items() if _is_scalar(value)}
        return {f"[{key}]": float(value) for key, value in scalars.items()}
    if _is_scalar(computed):
        return {"": float(computed)}
    if isinstance(computed, torch.Tensor) and computed.ndim == 1:
        return {f"[{index}]": value for index, value in enumerate(computed.double().tolist())}
    return {}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
