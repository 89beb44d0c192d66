"""A masked module and data for real fits, a part for each client."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import MaskedModule


class LitMasked(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = MaskedModule(nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 2)), seed=1)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def data(context):
    rng = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x = torch.randn(32, 8, generator=rng)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)


def down_bytes(trainer):
    return [record.metrics["bytes_down"] for record in trainer.rounds]
