"""Optimizers in shards, kept from message to message in two processes, and then in one: prints weights."""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from _fsdp1 import FSDP1
from _lines import LateNet, loader
from flwr.app import ConfigRecord, Context, Message, RecordDict
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_fl_ext import client_app, digest
from lightning_fl_ext.client.bridge.model_state import pack_state
from lightning_fl_ext.client.launcher.launchers import Processes
from lightning_fl_ext.client.launcher.rank import enter, rank
from lightning_fl_ext.client.launcher.work import work_of
from lightning_fl_ext.engines.private import ensure_identity, set_message_id
from lightning_fl_ext.seeds import derive_seed, seeded_ranks
from lightning_fl_ext.wire import WeightExchange, from_record, to_record

WEIGHTS = {
    name: torch.linspace(-0.5, 0.5, shape.numel()).reshape(shape).numpy()
    for name, shape in {
        "layer.0.weight": torch.Size((6, 3)),
        "layer.0.bias": torch.Size((6,)),
        "layer.2.weight": torch.Size((1, 6)),  # FSDP2 gives rank 1 none of it
    }.items()
}


class Lit(LateNet):
    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    def configure_optimizers(self):
        optimizer = OPTIMIZERS[self.optimizer](self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


FLAT = {"fsdp1": {}, "wrapped": {"auto_wrap_policy": {nn.Linear}}}
PLANS = (
    ("fsdp2", "adam"),
    ("tp", "momentum"),
    ("fsdp2", "sgd"),
    ("fsdp1", "adam"),
    ("fsdp1", "sgd"),
    ("wrapped", "momentum"),
)
MOVED = ("fsdp2", "wrapped")
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.AdamW(parameters, 0.05, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
}


def data(batch_size, context):
    return loader(24, batch_size)


def two(plan):
    if plan in FLAT:
        return {"accelerator": "cpu", "devices": 2, "strategy": FSDP1(**FLAT[plan])}
    dp, tp = {"fsdp2": (2, 1), "tp": (1, 2)}[plan]
    strategy = ModelParallelStrategy(data_parallel_size=dp, tensor_parallel_size=tp)
    return {"accelerator": "cpu", "devices": 2, "strategy": strategy}


def seed(server_round):
    return derive_seed(0, server_round, "a", "train")


def ask(app, to, server_round):
    config = ConfigRecord({"server-round": server_round})
    message = Message(RecordDict({"arrays": to_record(WEIGHTS), "config": config}), 7, "train")
    set_message_id(message, f"m{server_round}")
    reply = work_of(app)(message, to)
    return None if reply is None else from_record(reply.content["arrays"])


class TakesWeights(Callback):
    """Starts every epoch from the weights that the server sends, and shuffles as in a round of its own."""

    def on_train_epoch_start(self, trainer, module):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        trainer.train_dataloader.sampler.seed = seed(trainer.current_epoch + 1)
        whole = {name: torch.from_numpy(array.copy()) for name, array in WEIGHTS.items()}
        module = trainer.strategy.model if isinstance(trainer.strategy, FSDP1) else module
        set_model_state_dict(module, whole, options=StateDictOptions(full_state_dict=True))


def lived_on(plan, optimizer, batch_size=4):
    """The weights after one long fit of three epochs."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    options = {**two(plan), **quiet, "enable_model_summary": False, "callbacks": [TakesWeights()]}
    module, trainer = Lit(optimizer), L.Trainer(max_epochs=3, num_sanity_val_steps=0, **options)
    with seeded_ranks(seed(1)):
        trainer.fit(module, data(batch_size, None))
    return pack_state(trainer, module, WeightExchange(), like=None)


def keeps(root, options, optimizer, rounds, batch_size=4):
    """What rank 0 answers in the last of these rounds."""
    to = Context(1, 7, {"client-id": "a"}, RecordDict(), {})
    app = client_app(lambda: Lit(optimizer), partial(data, batch_size), options, keep_optimizer=root)
    return [ask(app, to, server_round) for server_round in rounds][-1]


def listed(arrays):
    return {name: array.ravel().tolist() for name, array in arrays.items()}


def ranks(root):
    """Three rounds in two processes, beside a fit that lived on; and two, after which one process goes on."""
    enter()
    told = {"alike": {}, "moved": {}}
    for plan, optimizer in PLANS:
        kept = keeps(root / plan / optimizer, two(plan), optimizer, (1, 2, 3))
        long = lived_on(plan, optimizer)
        if rank() == 0:
            told["alike"][f"{plan} {optimizer}"] = digest(kept), digest(long)
    for plan in MOVED:
        keeps(root / "moved" / plan, two(plan), "adam", (1, 2), 12)
        long = lived_on(plan, "adam", 12)
        told["moved"][plan] = [listed(long)]
    if rank() == 0:
        (root / "told.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


def main(root):
    launcher = Processes()  # the ranks meet at a store that it holds
    started = launcher.start([sys.executable, "-W", "ignore", __file__, str(root)], 2)
    try:
        assert [process.wait(200) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    told = json.loads((root / "told.json").read_text())
    for plan in MOVED:
        moved = keeps(root / "moved" / plan, {"accelerator": "cpu", "devices": 1}, "adam", (3,), 24)
        told["moved"][plan].insert(0, listed(moved))
    print("RESULT " + json.dumps(told))


if __name__ == "__main__":
    ensure_identity()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    (ranks if "RANK" in os.environ else main)(Path(sys.argv[1]))
