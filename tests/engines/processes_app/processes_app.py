"""Clients, each other one of which trains in two processes, by a launcher that the environment names."""

import json
import os
from pathlib import Path

import lightning.pytorch as L
import torch
from flwr.serverapp import ServerApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, WeightExchange, client_app


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1), nn.Dropout(0.1))

    def training_step(self, batch, _):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def make_model(context):
    folder = Path(context.run_config["run-dir"], "processes")
    folder.mkdir(exist_ok=True)
    (folder / f"client {partition(context)} process {os.getpid()}").touch()
    return Lit()


def partition(context):
    return int(context.node_config["partition-id"])


def data(context):
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(partition(context)))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


def trainer(context):
    return {"accelerator": "cpu", "devices": 2 - partition(context) % 2}


client = client_app(
    make_model,
    data,
    trainer,
    exchange=WeightExchange(exclude="net.0.*"),
    num_threads=1,
    keep_optimizer=True,
    launcher=os.environ.get("LAUNCHER", "auto"),
)
server = ServerApp()


@server.main()
def main(grid, context):
    config = context.run_config
    strategy = ExactFedAvg(fraction_evaluate=0.0, min_available_nodes=config["clients"])
    exchange = WeightExchange(exclude="net.0.*")
    trainer = FederatedTrainer(config["rounds"], strategy, exchange=exchange, seed=7)
    result = trainer.fit(Lit(), grid)
    told = {
        "digest": result.digest,
        "rounds": [[record.accepted, record.metrics["loss"]] for record in result.rounds],
    }
    Path(config["run-dir"], "outcome.json").write_text(json.dumps(told))
