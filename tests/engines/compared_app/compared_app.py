"""One federation for every engine: strategies one after the other, so that engines start once.

What tends to differ between engines is in it: convolutions, which sum otherwise on another number of threads,
batch norm, dropout, shuffled data, a metric that is pooled, and three of four clients in each round.
"""

import json
import time
from pathlib import Path

import lightning.pytorch as L
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score

from lightning_fl_ext import (
    Ditto,
    ExactFedAvg,
    ExactFedYogi,
    FedDyn,
    FederatedTrainer,
    FedNova,
    FedPM,
    FedProx,
    FedRep,
    GeometricMedian,
    MaskedModule,
    MaskExchange,
    RobustFedAvg,
    RoundLedger,
    Scaffold,
    SecureFedAvg,
    TrimmedMean,
    WeightExchange,
    client_app,
)

CLIENTS = 4


def with_first(strategy, *first):
    """A strategy's class whose first arguments are given."""

    class Given(strategy):
        def __init__(self, **options):
            super().__init__(*first, **options)

    return Given


STRATEGIES = {
    "ExactFedAvg": ExactFedAvg,
    "ExactFedYogi": ExactFedYogi,
    "FedAdam": FedAdam,
    "FedPM": FedPM,
    "GeometricMedian": with_first(RobustFedAvg, GeometricMedian()),
    "TrimmedMean": with_first(RobustFedAvg, TrimmedMean(0.34)),
    "FedProx": with_first(FedProx, 0.1),
    "Scaffold": Scaffold,
    "FedNova": FedNova,
    "FedDyn": with_first(FedDyn, 0.1),
    "Ditto": with_first(Ditto, 0.1),
    "FedRep": FedRep,
    "SecureFedAvg": SecureFedAvg,
}
ONE_ROUND = ("ExactFedAvg", "GeometricMedian", "TrimmedMean", "FedProx", "FedNova", "SecureFedAvg")
ROUNDS = {name: 1 if name in ONE_ROUND else 2 for name in STRATEGIES}
"""Two where the server or a client keeps something from the first."""


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(32, 2),
        )
        self.f1 = MulticlassF1Score(2)

    def training_step(self, batch, _):
        x, y = batch
        logits = self.net(x)
        self.f1(logits, y)
        self.log("train_f1", self.f1, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class LitSGD(Lit):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class LitMasked(Lit):
    def __init__(self):
        super().__init__()
        self.net = MaskedModule(self.net, exclude="1.*", seed=0)  # the batch norm is trained as it is


def data(context):
    partition = int(context.node_config["partition-id"])
    generator = torch.Generator().manual_seed(partition)
    x = torch.randn(24 + 8 * partition, 3, 16, 16, generator=generator)
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=16, shuffle=True)


def federation(name):
    """What clients and server have to agree on: the module, and what of it travels."""
    if name == "FedPM":
        return LitMasked, MaskExchange()
    module = LitSGD if name == "FedNova" else Lit
    return module, WeightExchange(exclude="net.7.*" if name == "FedRep" else ())


def telling(name):
    """The strategy, telling clients which one it is."""

    class Telling(STRATEGIES[name]):
        def configure_train(self, server_round, arrays, config, grid):
            config["strategy"] = name
            return super().configure_train(server_round, arrays, config, grid)

    Telling.__name__ = name
    return Telling(fraction_train=0.75, fraction_evaluate=0.0, min_available_nodes=CLIENTS)


client = ClientApp()
server = ServerApp()


@client.train()
@client.train("secure")
@client.query()
def answer(message, context):
    name = message.content["config"]["strategy"] if "config" in message.content else ""
    module, exchange = federation(name)
    folder = Path(context.run_config["run-dir"]) / "states"
    options = {"exchange": exchange, "num_threads": 1, "keep_local": folder}
    trainer = {"accelerator": "cpu", "max_epochs": 2 if name == "FedRep" else 1}  # the first for the head
    return client_app(module, data, trainer, **options)(message, context)


@server.main()
def main(grid, context):
    folder = Path(context.run_config["run-dir"])
    outcome = {}
    for name in context.run_config["strategies"].split() or STRATEGIES:
        module, exchange = federation(name)
        trainer = FederatedTrainer(
            max_rounds=ROUNDS[name],
            strategy=telling(name),
            seed=7,
            callbacks=[RoundLedger()],
            default_root_dir=folder / name,
            exchange=exchange,
        )
        start = time.perf_counter()
        result = trainer.fit(module, grid)
        outcome[name] = {"digest": result.digest, "seconds": time.perf_counter() - start}
    (folder / "outcome.json").write_text(json.dumps(outcome))
