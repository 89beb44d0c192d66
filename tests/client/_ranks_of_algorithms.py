"""Two rounds of an algorithm, on one process with whole batches and on two that halve them.

Prints the weights of each way that is named, its algorithm and its app; and after them the loss of the
clients' own models, where they have some.
"""

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _quadratic
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    Ditto,
    ExactFedAvg,
    FedDyn,
    FedNova,
    FedProx,
    FedRep,
    Scaffold,
    WeightExchange,
    client_app,
)


class Judged(_quadratic.Quadratic):
    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]), sync_dist=True)


def app(batch, keep_local=True, exchange=None, **trainer):
    def data(context):
        rows = _quadratic.examples(int(context.node_config["partition-id"]))
        return DataLoader(TensorDataset(*(torch.from_numpy(part[:4]) for part in rows)), batch_size=batch)

    settings = {"accelerator": "cpu", "max_epochs": 3, **trainer}
    return client_app(Judged, data, settings, keep_local=keep_local, exchange=exchange)


one = app(4, devices=1)
fork = app(2, devices=2, strategy="ddp_fork")
ddp = app(2, devices=2)
ddp_in_context = app(2, keep_local=False, devices=2)  # what an algorithm keeps lies in Flower's Context
HEAD = WeightExchange(exclude="head")
one_head = app(4, exchange=HEAD, devices=1)
fork_head = app(2, exchange=HEAD, devices=2, strategy="ddp_fork")
STRATEGIES = {
    "plain": ExactFedAvg,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "fedprox": lambda: FedProx(0.3),
    "feddyn": lambda: FedDyn(alpha=0.3),
    "ditto": lambda: Ditto(0.3),
    "fedrep": FedRep,
}
OWN = {"ditto": "personal_val_loss", "fedrep": "val_loss"}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    told = {}
    for way in sys.argv[1:]:
        algorithm, name = way.split()
        options = {"exchange": HEAD} if name.endswith("head") else {}
        trainer = _quadratic.run(
            STRATEGIES[algorithm](),
            globals()[name],
            rounds=2,
            clients=2,
            model=Judged,
            evaluate=float(algorithm in OWN),
            **options,
        )
        told[way] = [float(value) for array in trainer.arrays.values() for value in array.flat]
        if algorithm in OWN:
            told[way].append(trainer.rounds[-1].metrics[OWN[algorithm]])
    print("RESULT " + json.dumps(told))
