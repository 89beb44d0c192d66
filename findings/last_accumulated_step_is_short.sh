#!/usr/bin/env bash
# lightning 2.6.6 with torch 2.13.0: `accumulate_grad_batches=k` divides every loss by k, and steps at the end of an
# epoch with whatever was accumulated. Where k does not divide the number of batches, the last step of each epoch has a
# gradient that is too small; with fewer batches than k, every step has.
#
# Output seen (every batch has the gradient 1, and k is 8; a mean over what was accumulated is 1):
#   16 batches: gradients of the steps 1.0 1.0
#   19 batches: gradients of the steps 1.0 1.0 0.375
#   3 batches:  gradients of the steps 0.375
#
# Why it matters: in a federation all sites have one setting of their Trainer and different numbers of batches. A site
# with 3 of them trains with 3/8 of its gradient in every round, and nothing says so: the smallest sites, for whom one
# federates, count the least. The documentation tells of "a large effective batch size of size K x N", not of its end.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 lightning==2.6.6 numpy==2.4.6
PYTHONPATH=$here OMP_NUM_THREADS=1 python3 -W ignore - <<'PYTHON'
import logging

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Sloped(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.gradients = []

    def training_step(self, batch, _):
        return self.weight.sum()

    def on_before_optimizer_step(self, _):
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


found = {}
for batches in (16, 19, 3):
    module = Sloped()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=1, accumulate_grad_batches=8, accelerator="cpu", **quiet)
    trainer.fit(module, DataLoader(torch.zeros(batches, 1)))
    found[batches] = module.gradients
    print(f"{f'{batches} batches:':<11} gradients of the steps", *module.gradients)
assert found == {16: [1.0, 1.0], 19: [1.0, 1.0, 0.375], 3: [0.375]}, found
PYTHON
