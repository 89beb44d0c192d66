"""Two rounds of SCAFFOLD on one process with whole batches, and on two that halve them: prints weights."""

import json
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import _quadratic
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, Scaffold, client_app


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
    told = {
        "one": federate(Scaffold(), 4, {"devices": 1}),
        "two": federate(Scaffold(), 2, {"devices": 2, "strategy": "ddp_fork"}),
        "plain": federate(ExactFedAvg(), 4, {"devices": 1}),
    }
    print("RESULT " + json.dumps(told))
