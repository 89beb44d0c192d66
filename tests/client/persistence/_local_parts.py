"""Modules of which parts stay at home, and a federation of them."""

import os
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, LocalGrid

CLIENTS, ROUNDS = 4, 3
DEVICE = {"accelerator": "cpu", "devices": 1}


class Net(L.LightningModule):
    """A body, a batch norm and a head, trained without chance."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.bn(self.body(x)).tanh())

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def rows(client):
    """Data that is scaled and shifted differently on every client."""
    rng = np.random.default_rng(client)
    x = torch.from_numpy((rng.normal(size=(12 + 4 * client, 3)) * (1 + client) + client).astype(np.float32))
    return TensorDataset(x, x.mean(1, keepdim=True).sin())


def loader(context):
    return DataLoader(rows(context.node_config["partition-id"]), batch_size=4)


def federate(client, model=Net, rounds=ROUNDS, evaluate=None, ckpt_path=None, fraction=1.0, **options):
    trainer = FederatedTrainer(
        max_rounds=rounds,
        strategy=ExactFedAvg(fraction_evaluate=fraction),
        seed=3,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(model, LocalGrid(client, CLIENTS), evaluate=evaluate, ckpt_path=ckpt_path)
    assert not [record.rejected for record in trainer.rounds if record.rejected], trainer.rounds
    return trainer


def client_of(module):
    return int(module.trainer.callbacks[0].client_id)


def files():
    return [path for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if path.is_file()]


class Adapted(Net):
    """A frozen body, drawn at random where the module is built, and a small part that is trained."""

    def __init__(self):
        super().__init__()
        self.body.requires_grad_(False)
        self.bn = nn.Identity()


class Tied(Net):
    """The head's weight under a second name, as an output layer that shares the embedding."""

    def __init__(self):
        super().__init__()
        self.bn = nn.LayerNorm(4)
        self.out = nn.Linear(4, 1)
        self.out.weight = self.head.weight

    def forward(self, x):
        return super().forward(x) + self.out(self.body(x).tanh())
