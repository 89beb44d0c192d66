#!/usr/bin/env bash
# torchmetrics 1.9.0 with torch 2.13.0: the AUROC and the average precision of a class without examples are undefined.
# With `thresholds` set, both are taken for 0 and go into the macro mean without a word. With thresholds=None AUROC warns
# and takes 0 all the same, and average precision leaves the class out: two ways of computing one metric disagree.
#
# Output seen (scores that tell two classes of three apart without fail; the third has no examples):
#   AUROC              thresholds=None   0.667   with a warning
#   AUROC              thresholds=50     0.667   without
#   average precision  thresholds=None   1.000   with a warning
#   average precision  thresholds=50     0.667   without
#
# Why it matters: a validation set, a site, or a round that asks few sites may lack a rare class. The metric then drops by
# a class's share, and a model that is as good as before looks worse; the best round or checkpoint is then another one.
# A perfect ranking scores 0.667. The binned way is the one for large data and for several processes.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
PYTHONPATH=$here python3 - <<'PYTHON'
import warnings

import torch
from torchmetrics.classification import MulticlassAUROC, MulticlassAveragePrecision

scores = torch.tensor([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
labels = torch.tensor([0, 0, 1, 1])
found = []
for words, metric in (("AUROC", MulticlassAUROC), ("average precision", MulticlassAveragePrecision)):
    for thresholds in (None, 50):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            value = round(metric(3, average="macro", thresholds=thresholds)(scores, labels).item(), 3)
        told = any("positive samples" in str(w.message) or "was `nan`" in str(w.message) for w in said)
        found.append((value, told))
        print(f"{words:<18} {f'thresholds={thresholds}':<17} {value:.3f}   {'with a warning' if told else 'without'}")
assert found == [(0.667, True), (0.667, False), (1.0, True), (0.667, False)], found
PYTHON
