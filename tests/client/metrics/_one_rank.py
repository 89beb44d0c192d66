"""A fit of two processes whose numbers are those of one: prints them, and what is said of them, as JSON."""

import json
import logging
import tempfile
from pathlib import Path

import lightning.pytorch as L
import torch
from _modules import QUIET
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_fl_ext import FlowerBridge


class Ranks(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.step_mean, self.epoch_mean = MeanMetric(), MeanMetric()

    def loader(self):
        return DataLoader(torch.zeros(16), batch_size=8)

    train_dataloader = val_dataloader = loader

    def training_step(self, batch, batch_idx):
        rank, size = torch.tensor(float(self.trainer.global_rank)), len(batch)
        self.log("step", rank)
        self.log("step_synced", rank, sync_dist=True)
        self.log("step_meant", rank, rank_zero_only=True)
        self.log("epoch", rank, on_step=False, on_epoch=True, batch_size=size)
        self.log("epoch_synced", rank, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        self.step_mean(rank)
        self.log("step_object", self.step_mean)
        self.epoch_mean(rank)
        self.log("epoch_object", self.epoch_mean, on_step=False, on_epoch=True)
        return self.weight.square()

    def validation_step(self, batch, _):
        self.log("val_step", torch.ones(()), on_step=True, on_epoch=False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        logging.getLogger("lightning_fl_ext.client.notices").addHandler(logging.FileHandler(said))
        options = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 2}
        trainer = L.Trainer(**{**QUIET, **options}, callbacks=[FlowerBridge()])
        trainer.fit(Ranks())
        lines = said.read_text().splitlines()
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print("RESULT", json.dumps({"found": found, "said": lines}))
