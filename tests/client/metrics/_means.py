"""Means over two processes that hold an odd number of examples, printed as JSON."""

import json

import lightning.pytorch as L
import torch
from _modules import QUIET
from torch import nn
from torch.utils.data import DataLoader

from lightning_fl_ext import FlowerBridge

COUNTS = 26, 25


class Ones(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def loader(self):
        return DataLoader(torch.zeros(COUNTS[self.trainer.global_rank]), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = loader

    def training_step(self, batch, _):
        self.log("one", torch.ones(()), on_step=True, on_epoch=True, sync_dist=True, batch_size=len(batch))
        return self.weight.square()

    def validation_step(self, batch, _):
        self.log("val_one", torch.ones(()), sync_dist=True, batch_size=len(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_one", torch.ones(()), sync_dist=True, batch_size=len(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


if __name__ == "__main__":
    found = {}
    for call in ("fit", "validate", "test"):
        options = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 1, "use_distributed_sampler": False}
        trainer = L.Trainer(**{**QUIET, **options}, callbacks=[FlowerBridge()])
        getattr(trainer, call)(Ones(), **({} if call == "fit" else {"verbose": False}))
        found |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    print("RESULT", json.dumps(found))
