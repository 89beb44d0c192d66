"""Clients on CUDA devices in processes of their own, and on the processor: prints their weights."""

import json
import logging
import sys

import torch
from _lines import InShards, LateNet, Line, loader
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app
from lightning_fl_ext.client.launcher.launchers import Processes


class Sharded(InShards, Line):
    pass


def data(context):
    return loader(8, batch_size=8)  # one step over all rows, however many processes share them


def cuda(devices, **options):
    return {"accelerator": "cuda", "devices": devices, **options}


def fsdp2(context):
    return cuda(2, strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))


def tensor_parallel(context):
    return cuda(2, strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2))


WAYS = {
    "one": (Line, {"accelerator": "cpu", "devices": 1}, "auto"),
    "one_gpu": (Line, cuda(1), Processes()),
    "ddp": (Line, cuda(2), "auto"),
    "fsdp1": (Line, cuda(2, strategy="fsdp"), "auto"),
    "fsdp2": (Sharded, fsdp2, "auto"),
    "late": (LateNet, {"accelerator": "cpu", "devices": 1}, "auto"),
    "tensor_parallel": (LateNet, tensor_parallel, "auto"),
}
apps = {
    name: client_app(module, data, trainer, launcher=launcher, keep_local=False)
    for name, (module, trainer, launcher) in WAYS.items()
}
globals().update(apps)  # each process finds its app by such a name


def federate(name):
    def model():
        torch.manual_seed(0)
        module = LateNet() if WAYS[name][0] is LateNet else Line()
        module.configure_model()
        return module

    trainer = FederatedTrainer(1, ExactFedAvg(fraction_evaluate=0.0), seed=3, enable_progress_bar=False)
    run_local(server_app(model, trainer), apps[name], num_clients=2)
    assert not trainer.rounds[-1].rejected, trainer.rounds[-1].rejected
    weights = {n: value.flatten().tolist() for n, value in trainer.result.model.state_dict().items()}
    assert not torch.cuda.is_initialized(), "the client's own process stays off the devices"
    return weights


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    print("RESULT " + json.dumps({name: federate(name) for name in sys.argv[1:]}))
