"""Two rounds of an algorithm, on one process with whole batches and on two that halve them.

Prints the weights of each way that is named: its algorithm and its app.
"""

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _quadratic
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import Ditto, ExactFedAvg, FedDyn, FedNova, FedProx, Scaffold, client_app


def app(batch, keep_local=True, **trainer):
    def data(context):
        rows = _quadratic.examples(int(context.node_config["partition-id"]))
        return DataLoader(TensorDataset(*(torch.from_numpy(part[:4]) for part in rows)), batch_size=batch)

    settings = {"accelerator": "cpu", "max_epochs": 3, **trainer}
    return client_app(_quadratic.Quadratic, data, settings, keep_local=keep_local)


one = app(4, devices=1)
fork = app(2, devices=2, strategy="ddp_fork")
ddp = app(2, devices=2)
ddp_in_context = app(2, keep_local=False, devices=2)  # what an algorithm keeps lies in Flower's Context
STRATEGIES = {
    "plain": ExactFedAvg,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "fedprox": lambda: FedProx(0.3),
    "feddyn": lambda: FedDyn(alpha=0.3),
    "ditto": lambda: Ditto(0.3),
}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    told = {}
    for way in sys.argv[1:]:
        algorithm, name = way.split()
        trainer = _quadratic.run(STRATEGIES[algorithm](), globals()[name], rounds=2, clients=2)
        told[way] = _quadratic.weights(trainer).tolist()
    print("RESULT " + json.dumps(told))
