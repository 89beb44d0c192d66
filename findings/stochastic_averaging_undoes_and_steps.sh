#!/usr/bin/env bash
# lightning 2.6.6 with torch 2.13.0: StochasticWeightAveraging reads the weights as an epoch begins, not as it ends.
# What the last epoch trains is in no average, so a fit of one epoch gives back the weights it began with. For a module
# with batch norm it appends an epoch that is to measure the averaged weights alone ("no need to perform either backward
# or optimizer.step", says the source). Backward is skipped, but the optimizer does step at that epoch's end, by the
# gradient that is left of the epoch before: the weights of the fit are then not the average.
#
# Output seen (each batch adds 1 to the weight, four batches an epoch):
#   1 epoch,  without batch norm: trained to 4, ends with 0
#   2 epochs, without batch norm: trained to 8, ends with 2
#   1 epoch,  with batch norm:    trained to 4, ends with 1
#   2 epochs, with batch norm:    trained to 8, ends with 3
#
# Why it matters: in federated learning a fit of one epoch is the rule. Each client then hands in the weights that it
# received, and the run goes on to its end without having learned anything. Izmailov et al. 2018 (algorithm 1) average
# what cycles end with, the last one's among them; so does the recipe in torch.optim.swa_utils.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 lightning==2.6.6 numpy==2.4.6
PYTHONPATH=$here OMP_NUM_THREADS=1 python3 -W ignore - <<'PYTHON'
import logging

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.utils.data import DataLoader

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Count(L.LightningModule):
    """Its weight is the number of steps taken with a learning rate of 1."""

    def __init__(self, norm):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.norm = torch.nn.BatchNorm1d(1, affine=False) if norm else torch.nn.Identity()
        self.ends = []

    def training_step(self, batch, _):
        self.norm(batch)
        return -self.weight.sum()

    def on_train_epoch_end(self):
        self.ends.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader(torch.arange(8.0)[:, None], batch_size=2)


quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
found = []
for norm in (False, True):
    for epochs in (1, 2):
        module, averaging = Count(norm), StochasticWeightAveraging(swa_lrs=1.0)
        L.Trainer(max_epochs=epochs, callbacks=[averaging], accelerator="cpu", **quiet).fit(module)
        found.append((module.ends[epochs - 1], module.weight.item()))
        words = f"{epochs} epoch{'s,' if epochs > 1 else ', '} {'with' if norm else 'without'} batch norm:"
        print(f"{words:<29} trained to {found[-1][0]:.0f}, ends with {found[-1][1]:.0f}")
assert found == [(4, 0), (8, 2), (4, 1), (8, 3)], found
PYTHON
