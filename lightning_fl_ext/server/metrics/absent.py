"""Classes that no client has examples of, and that count as 0 in a mean over classes."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchmetrics.classification import (
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MultilabelAUROC,
    MultilabelAveragePrecision,
)

from lightning_fl_ext.metrics.discovery import named_metrics

_BY_CLASS = (MulticlassAUROC, MulticlassAveragePrecision, MultilabelAUROC, MultilabelAveragePrecision)


def absent_classes(module: nn.Module) -> dict[str, list[int]]:
    """Find the metrics whose macro mean torchmetrics takes over classes without examples as well.

    A binned AUROC or average precision of a class without positive examples is undefined, as is the AUROC of
    one without negative ones. Torchmetrics takes it for 0; with ``thresholds=None`` it says so, or leaves it
    out.

    Args:
        module: Holds metrics, with their states merged.

    Returns:
        Classes by the metric's name.

    Example:
        >>> import torch
        >>> auroc = MulticlassAUROC(3, thresholds=5)
        >>> auroc.update(torch.eye(3)[:2], torch.tensor([0, 1]))
        >>> auroc.compute().item(), absent_classes(nn.ModuleDict({"auroc": auroc}))
        (0.6666666865348816, {'auroc': [2]})
    """
    metrics = named_metrics(module).items()
    found = {name: _absent(metric) for name, metric in metrics if isinstance(metric, _BY_CLASS)}
    return {name: classes for name, classes in found.items() if classes}


def _absent(metric: Any) -> list[int]:
    if metric.average != "macro" or metric.thresholds is None or not metric._update_count:
        return []
    negative, positive = metric.confmat[0].sum(dim=-1).unbind(dim=-1)  # by class, at any threshold
    ranked = isinstance(metric, MulticlassAUROC | MultilabelAUROC)
    return [c for c, n in enumerate(positive.tolist()) if not n or (ranked and not negative[c])]
