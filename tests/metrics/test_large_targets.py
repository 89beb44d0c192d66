"""Metrics that lose their digits where targets are large keep them if a constant is subtracted."""

import pytest
import torch
from torch import nn
from torchmetrics.regression import ExplainedVariance, R2Score, RelativeSquaredError

from lightning_fl_ext.metrics import merge_metrics, pack_metrics

METRICS = {"r2": R2Score, "variance": ExplainedVariance, "error": RelativeSquaredError}


def test_pooled_values_less_a_constant_are_those_of_float64():
    random = torch.Generator().manual_seed(0)
    parts, packs = [], []
    for client in range(3):
        target = 10_000 + client + torch.randn(200 + 100 * client, generator=random)
        preds = target + 0.5 * torch.randn(len(target), generator=random)
        parts.append((preds, target))
        metrics = nn.ModuleDict({name: made() for name, made in METRICS.items()})
        for some in zip(preds.split(32), target.split(32), strict=True):
            for metric in metrics.values():
                metric.update(*(values - 10_000 for values in some))
        packs.append(pack_metrics(metrics, client_id=str(client)))
    merged = merge_metrics(nn.ModuleDict({name: made() for name, made in METRICS.items()}), packs)
    preds, target = (torch.cat(values).double() for values in zip(*parts, strict=True))
    left = (target - target.mean()).square().sum()
    told = {
        "r2": 1 - (preds - target).square().sum() / left,
        "variance": 1 - (target - preds).var(correction=0) / target.var(correction=0),
        "error": (preds - target).square().sum() / left,
    }
    for name, value in told.items():
        assert merged[name].compute().item() == pytest.approx(value.item(), rel=1e-4), name
