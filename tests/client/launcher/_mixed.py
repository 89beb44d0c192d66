"""Three clients of one federation: one process, tensor parallel and FSDP2. Prints what comes of a round."""

import json
import logging
import sys

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app

PLANS = [(1, 1), (1, 2), (2, 1)]
"""Data parallel and tensor parallel size by client."""


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = None
        self.seen = SumMetric()

    def configure_model(self):
        if self.net is not None:
            return
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
        mesh = self.device_mesh
        if mesh is not None and mesh["tensor_parallel"].size() > 1:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.net, mesh["tensor_parallel"], plan)
        if mesh is not None and mesh["data_parallel"].size() > 1:
            fully_shard(self.net, mesh=mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen.update(batch[0])
        self.log("val_loss", (self.net(batch[0]) - batch[1]).square().mean(), sync_dist=True)
        self.log("seen", self.seen)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(L.LightningDataModule):
    def __init__(self, client):
        super().__init__()
        x = torch.randn(9, 3, generator=torch.Generator().manual_seed(client))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self):  # one step over all rows, however many processes share them
        return DataLoader(TensorDataset(*self.rows[:8]), batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def data(context):
    return Data(int(context.node_config["partition-id"]))


def plans(context):
    dp, tp = PLANS[int(context.node_config["partition-id"])]
    parallel = {"strategy": ModelParallelStrategy(data_parallel_size=dp, tensor_parallel_size=tp)}
    return {"accelerator": "cpu", "devices": dp * tp, **(parallel if dp * tp > 1 else {})}


mixed = client_app(Lit, data, plans)
plain = client_app(Lit, data, {"accelerator": "cpu", "devices": 1})


def federate(client, fraction_evaluate):
    strategy = ExactFedAvg(fraction_evaluate=fraction_evaluate)
    trainer = FederatedTrainer(1, strategy, seed=3, enable_progress_bar=False)

    def model():
        module = Lit()
        module.configure_model()
        return module

    run_local(server_app(model, trainer), client, num_clients=3)
    record = trainer.rounds[-1]
    assert not record.rejected, record.rejected
    weights = {name: value.flatten().tolist() for name, value in trainer.result.model.state_dict().items()}
    counts = [site.num_examples for _, site in sorted(record.sites.items())]
    return {**weights, "metrics": dict(record.metrics), "counts": counts}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    told = [federate(client, float(sys.argv[1])) for client in (plain, mixed)]
    print("RESULT " + json.dumps(told))
