"""Three clients whose numbers of examples two processes cannot divide: prints what a run says of them."""

import json
import logging
import sys

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryF1Score

from lightning_fl_ext import FederatedTrainer, client_app, run_local, server_app

SIZES = {0: (21, 10), 1: (41, 10), 2: (7, 1)}
"""Rows and batch size by client: the last rank's last batch is smaller, cut from another, and a repeat."""


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.val = MetricCollection([BinaryF1Score(), BinaryAUROC()])
        self.tested = BinaryF1Score()
        self.norm = nn.BatchNorm1d(3)  # its buffers are sent to the other rank in each step within a fit

    def training_step(self, batch, batch_idx):
        return self.layer(self.norm(batch[0])).mean()

    def evaluate(self, name, metric, batch):
        score = self.layer(batch[0]).squeeze(1)
        metric.update(score, batch[1])
        loss = nn.functional.binary_cross_entropy_with_logits(score, batch[1].float())
        self.log(f"{name}_loss", loss, sync_dist=True)
        self.log(f"{name}_last", batch[0][:, 0].max(), reduce_fx="max", sync_dist=True)
        self.log_dict(metric) if isinstance(metric, MetricCollection) else self.log(f"{name}_f1", metric)

    def validation_step(self, batch, batch_idx):
        self.evaluate("val", self.val, batch)

    def test_step(self, batch, batch_idx):
        self.evaluate("test", self.tested, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)  # all runs evaluate the same weights


class Data(L.LightningDataModule):
    def __init__(self, client):
        super().__init__()
        self.rows, self.batch_size = SIZES[client]
        self.draw = torch.Generator().manual_seed(client)

    def loader(self, rows, batch_size):
        x = torch.randn(rows, 3, generator=self.draw)
        y = (x.sum(1) + torch.randn(rows, generator=self.draw) > 0).int()
        return DataLoader(TensorDataset(x, y), batch_size)

    def train_dataloader(self):
        return self.loader(12, 4)

    def val_dataloader(self):
        return self.loader(self.rows, self.batch_size)

    def test_dataloader(self):
        return self.loader(self.rows, self.batch_size)


def app(**options):
    return client_app(
        Lit,
        lambda context: Data(int(context.node_config["partition-id"])),
        {"accelerator": "cpu", **options},
        allow_example_states=("val",),
    )


one, ddp, ddp_fork = app(devices=1), app(devices=2), app(devices=2, strategy="ddp_fork")


def federate(client):
    trainer = FederatedTrainer(max_rounds=1, seed=3, enable_progress_bar=False)
    run_local(server_app(Lit, trainer, test=True), client, num_clients=3)
    record = trainer.rounds[-1]
    assert not record.rejected, record.rejected
    tested = trainer.result.test.metrics
    return {**record.metrics, **{name: tested[name] for name in ("test_loss", "test_f1", "test_last")}}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    told = {"one": federate(one), "two": federate(globals()[sys.argv[1]])}
    print("RESULT " + json.dumps(told))
