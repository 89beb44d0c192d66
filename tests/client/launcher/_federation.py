"""A client of two processes, run as a script: prints what its messages were answered as JSON."""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from _lines import InShards, Line, loader, rows
from flwr.app import ConfigRecord, Message, RecordDict
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_fl_ext import client_app, digest
from lightning_fl_ext.client.launcher.rank import is_inside, rank
from lightning_fl_ext.engines import LocalGrid
from lightning_fl_ext.wire import from_record, to_record


class Lit(Line):
    """What it logs and trains depends on Python's random numbers and on torch's."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def training_step(self, batch, batch_idx):
        loss = self.loss([self.drop(batch[0]), batch[1]])
        self.log("loss", loss + random.random(), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


class Sharded(InShards, Lit):
    pass


class Failing(Lit):
    """In the first rounds a rank raises, is killed, or never comes to an end."""

    def __init__(self, server_round):
        super().__init__()
        self.server_round = server_round

    def training_step(self, batch, batch_idx):
        if self.server_round == 1 and rank() == 1:
            raise OSError("no such disk")
        if self.server_round == 2 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.server_round == 3 and rank() == 1:
            time.sleep(1000)
        return super().training_step(batch, batch_idx)


def failing(round):
    return Failing(round.server_round)


def data(context):
    return loader(101)


def data_of_workers(context):  # processes of processes
    return DataLoader(rows(101), batch_size=10, num_workers=1)


def two(**options):
    return {"accelerator": "cpu", "devices": 2, **options}


def parallel(context):
    return two(strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))


SRUN = [sys.executable, str(Path(__file__).with_name("_srun.py"))]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
APPS = {
    "ddp": client_app(Lit, data, two(), keep_local=False),
    "fork": client_app(Lit, data, two(strategy="ddp_fork"), keep_local=False),
    "spawn": client_app(Lit, data, two(strategy="ddp_spawn"), keep_local=False),
    "kept": client_app(failing, data, two(), keep_local=False, launcher="kept"),
    "torchrun": client_app(Lit, data, two(), launcher=TORCHRUN),
    "srun": client_app(Lit, data, two(), launcher=[*SRUN, "--ntasks-per-node", "2"]),
    "nodes": client_app(
        Lit,
        data,
        {"accelerator": "cpu", "devices": 1, "num_nodes": 2},
        launcher=[*SRUN, "--nodes", "2", "--ntasks-per-node", "1"],
    ),
    "fsdp2": client_app(Sharded, data, parallel, keep_local=False),
    "failing": client_app(
        failing, data_of_workers, two(), keep_local=False, fit_timeout=float(os.getenv("LIMIT", "60"))
    ),
}
ddp, fork, spawn, kept, torchrun, srun, nodes, fsdp2, failing_app = APPS.values()


def left():
    """Name the processes that this one's launcher has started and that are still there."""
    mark = f"TORCHELASTIC_RUN_ID=client-{os.getpid()}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes():
                found.append(path.parent.name)
    return found


def ask(grid, kind, server_round):
    weights = {"layer.weight": torch.full((1, 3), 0.5).numpy(), "layer.bias": torch.zeros(1).numpy()}
    config = ConfigRecord({"server-round": server_round, "run-seed": 5})
    content = RecordDict({"arrays": to_record(weights), "config": config})
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    if reply.has_error():
        return {"error": reply.error.reason, "left": left()}
    told = {"metrics": dict(reply.content["metrics"])}
    if kind == "train":
        arrays = from_record(reply.content["arrays"])
        told |= {"digest": digest(arrays), "weights": {k: v.ravel().tolist() for k, v in arrays.items()}}
    return told


if __name__ == "__main__":
    assert not is_inside()
    results = {}
    for task in sys.argv[1:]:
        name, *asked = task.split(",")
        grid = LocalGrid(APPS[name], num_clients=1)
        results[name] = [ask(grid, *one.split(":")[:1], int(one.split(":")[1])) for one in asked]
    print("RESULT", json.dumps(results))
