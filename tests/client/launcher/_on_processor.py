"""Clients under FSDP1 and DeepSpeed on the processor, and a plain one: prints what federations come to.

Lightning asks for CUDA devices before it uses the two. Here what asks is left out, and nothing else.
"""

import json
import logging
import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import lightning.pytorch as L
import torch
from _fsdp1 import FSDP1
from _lines import rows
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app


class DeepSpeed(DeepSpeedStrategy):
    """Lightning's, but for the device."""

    @property
    def root_device(self):
        return torch.device("cpu", self.local_rank)

    def setup_environment(self):
        DDPStrategy.setup_environment(self)

    def setup_distributed(self):
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 1, bias=False)
        self.second.bias = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.seen = SumMetric()
        self.seen.persistent(True)  # and yet no part of the model

    def loss(self, batch):
        return (self.second(torch.tanh(self.first(batch[0]))) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        self.steps += 1
        loss = self.loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.seen.update(batch[0])
        self.log("seen", self.seen)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        self.rows = rows(9, seed=int(context.node_config["partition-id"]))

    def train_dataloader(self):  # one step over all rows, however many processes share them
        return DataLoader(TensorDataset(*self.rows[:8]), batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def app(strategy, devices=2, **options):
    fixed = {"accelerator": "cpu", "devices": devices, "max_epochs": 3}
    trainer = lambda context: {**fixed, "strategy": strategy(**options)}  # noqa: E731
    return client_app(Net, Data, trainer, launcher="kept", keep_local=False)


one = app(lambda: "auto", devices=1)
fsdp1 = app(FSDP1)
layers = app(FSDP1, auto_wrap_policy={nn.Linear}, activation_checkpointing_policy={nn.Linear})
stage_1, stage_2, stage_3 = (app(DeepSpeed, stage=i, process_group_backend="gloo") for i in (1, 2, 3))


def federate(client):
    def model():
        torch.manual_seed(0)
        return Net()

    trainer = FederatedTrainer(2, ExactFedAvg(), seed=3, enable_progress_bar=False)
    run_local(server_app(model, trainer), client, num_clients=3)
    told = {name: array.ravel().tolist() for name, array in trainer.arrays.items()}
    for record in trainer.rounds:
        assert not record.rejected, record.rejected
        told |= {f"round {record.server_round} {name}": value for name, value in record.metrics.items()}
    return told


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("RESULT " + json.dumps([federate(globals()[name]) for name in sys.argv[1:]]))
