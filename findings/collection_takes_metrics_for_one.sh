#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: a MetricCollection compares its members' states after the first `update`, and
# from then on updates one of those whose states were equal, and computes all from it. Settings are not compared. Two
# thresholds, two `ignore_index`, two `top_k` often give equal states on the first batch, the smaller the more likely.
#
# Output seen (the second batch tells the thresholds apart):
#   by itself                     over 50 %: 0.400   over 90 %: 1.000
#   in a collection               over 50 %: 0.400   over 90 %: 0.400
#   the batches in other order    over 50 %: 0.400   over 90 %: 1.000
#   compute_groups=False          over 50 %: 0.400   over 90 %: 1.000
#
# Why it matters: the numbers depend on the order of the batches, and are wrong without a word. In a federation each
# client guesses anew, in each round, on its own first batch: some clients then report one metric under the name of the
# other, and the mean over clients is of both. The documentation says that groups are of metrics which "share the same
# metric state and are therefore only different in their compute step"; these are not.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" \
    torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
PYTHONPATH=$here python3 -W ignore - <<'PYTHON'
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

BATCHES = [
    (torch.tensor([0.95, 0.1]), torch.tensor([1, 0])),
    (torch.tensor([0.6, 0.7, 0.8]), torch.tensor([0, 0, 0])),
]


def values(metrics, batches):
    for batch in batches:
        for metric in metrics:
            metric.update(*batch)
    found = {}
    for metric in metrics:
        value = metric.compute()
        found |= value if isinstance(value, dict) else {f"over {int(100 * metric.threshold)} %": value}
    return {name: round(value.item(), 3) for name, value in found.items()}


def members():
    return [BinaryAccuracy(threshold=0.5), BinaryAccuracy(threshold=0.9)]


def collection(**options):
    return [MetricCollection(dict(zip(("over 50 %", "over 90 %"), members())), **options)]


found = {
    "by itself": values(members(), BATCHES),
    "in a collection": values(collection(), BATCHES),
    "the batches in other order": values(collection(), BATCHES[::-1]),
    "compute_groups=False": values(collection(compute_groups=False), BATCHES),
}
for words, value in found.items():
    print(f"{words:<29} " + "   ".join(f"{name}: {number:.3f}" for name, number in value.items()))
wrong = found.pop("in a collection")
assert wrong == {"over 50 %": 0.4, "over 90 %": 0.4}, wrong
assert all(value == {"over 50 %": 0.4, "over 90 %": 1.0} for value in found.values()), found
PYTHON
