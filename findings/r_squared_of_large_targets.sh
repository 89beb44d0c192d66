#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: R2Score, ExplainedVariance and RelativeSquaredError sum the targets' squares in
# single precision and subtract the squared sum at the end. Where the targets' mean is large beside their spread, nothing
# of the difference is left. PearsonCorrCoef, which keeps a running mean, is right on the same data.
#
# Output seen (20000 targets of spread 1, errors of 0.5, in batches of 64; digits differ by processor):
#   mean of the targets   0.0      R2Score 0.75   of float64 0.75
#   mean of the targets   1000.0   R2Score 0.59   of float64 0.75
#   mean of the targets   10000.0  R2Score 1.01   of float64 0.75
#   less that mean        10000.0  R2Score 0.75   of float64 0.75
#
# Why it matters: temperatures in Kelvin, years, prices and counts are such targets, and R2 is what regressions are judged
# by. It comes out wrong by any amount without a word, past its maximum of 1 too, and no early stopping or choice of a
# best model that goes by it can be trusted. A constant that is subtracted from targets and predictions changes none of
# the three.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
PYTHONPATH=$here python3 -W ignore - <<'PYTHON'
import torch
from torchmetrics import R2Score


def measure(mean, less):
    random = torch.Generator().manual_seed(0)
    target = mean + torch.randn(20_000, generator=random)
    preds = target + 0.5 * torch.randn(20_000, generator=random)
    metric = R2Score()
    for some in zip(preds.split(64), target.split(64)):
        metric.update(*(values - less for values in some))
    exact, wide = target.double(), preds.double()
    told = 1 - (wide - exact).square().sum() / (exact - exact.mean()).square().sum()
    words = f"{'less that mean' if less else 'mean of the targets':<21} {mean:<8}"
    print(f"{words} R2Score {metric.compute().item():.2f}   of float64 {told.item():.2f}")
    return (metric.compute() - told).abs().item()


assert measure(0.0, 0.0) < 0.01
measure(1000.0, 0.0)
assert measure(10_000.0, 0.0) > 0.03
assert measure(10_000.0, 10_000.0) < 0.01
PYTHON
