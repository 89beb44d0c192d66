"""Two rounds of each algorithm on one process, and on two that halve its batches: prints weights."""

import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _quadratic
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FedDyn, FedNova, FedProx, Scaffold, client_app


def federate(strategy, batch, trainer):
    def data(context):
        rows = _quadratic.examples(int(context.node_config["partition-id"]))
        return DataLoader(TensorDataset(*(torch.from_numpy(part[:4]) for part in rows)), batch_size=batch)

    settings = {"accelerator": "cpu", "max_epochs": 3, **trainer}
    with tempfile.TemporaryDirectory() as folder:
        client = client_app(_quadratic.Quadratic, data, settings, keep_local=folder)
        return _quadratic.weights(_quadratic.run(strategy, client, rounds=2, clients=2)).tolist()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    one, two = {"devices": 1}, {"devices": 2, "strategy": "ddp_fork"}
    told = {"plain": federate(ExactFedAvg(), 4, one)}
    for make in (Scaffold, FedNova, lambda: FedProx(0.3), lambda: FedDyn(0.2)):
        told[make().algorithm] = [federate(make(), 4, one), federate(make(), 2, two)]
    print("RESULT " + json.dumps(told))
