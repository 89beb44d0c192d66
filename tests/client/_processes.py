"""Fits over two processes, run as a script (workers import it anew): prints what came back as JSON."""

import gc
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import torch
from _lines import InShards, Line, loader
from _modules import QUIET
from flwr.app import ConfigRecord, Context, Message, RecordDict
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset

from lightning_fl_ext import (
    FlowerBridge,
    LightningFLError,
    MaskedModule,
    MaskExchange,
    client_app,
    digest,
)
from lightning_fl_ext.engines.private import ensure_identity, set_message_id
from lightning_fl_ext.seeds import derive_seed, seeded_ranks
from lightning_fl_ext.wire import Held, RoundInfo, from_record, to_record


class Lit(Line):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 1)
        self.fail_in_epoch = None

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.fail_in_epoch:
            raise OSError("disk")
        return super().training_step(batch, batch_idx)


class Sharded(InShards, Lit):
    pass


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader(20).dataset)


def trainer(strategy, *callbacks, epochs=2, **options):
    fixed = {"devices": 2, "num_sanity_val_steps": 0, "max_epochs": epochs, "callbacks": list(callbacks)}
    return L.Trainer(strategy=strategy, **{**QUIET, **fixed, **options})


def instruction(kind, server_round=1):
    ensure_identity()
    weights = {"layer.weight": torch.full((1, 3), 0.5).numpy(), "layer.bias": torch.zeros(1).numpy()}
    content = {"arrays": to_record(weights), "config": ConfigRecord({"server-round": server_round})}
    message = Message(RecordDict(content), 7, kind)
    set_message_id(message, "m")
    return message


def context():
    return Context(1, 7, {"client-id": "a"}, RecordDict(), {})


def describe(bridge):
    return {
        "epochs": [[r.epoch, r.num_examples, r.digest] for r in bridge.results],
        "update": bridge.update.digest,
        "seen": bridge.update.examples_seen,
        "metrics": sorted(bridge.update.metrics),
        "weights": {name: array.ravel().tolist() for name, array in bridge.update.arrays.items()},
    }


def fit(strategy):
    """101 examples, which a distributed sampler fills up to 102; then the same bridge in a fit that fails."""
    module = Lit()
    bridge = FlowerBridge.from_message(instruction("train"), context(), keep="all")
    trainer(strategy, bridge).fit(module, loader(101))
    out = {
        "fit": describe(bridge),
        "module": digest({k: v.numpy() for k, v in module.state_dict().items()}),
        "reply": digest(from_record(bridge.reply().content["arrays"])),
        "folder_mode": oct(bridge._store.folder.stat().st_mode & 0o777),
    }
    module.fail_in_epoch = 1
    try:
        trainer(strategy, bridge).fit(module, loader(101))
    except Exception:
        out["epochs_after_failure"] = [r.epoch for r in bridge.results]
    try:
        _ = bridge.update
    except LightningFLError as error:
        out["refused"] = str(error)
    folder = bridge._store.folder
    del bridge
    gc.collect()
    out["folder_left"] = folder.exists()
    return out


def validate(strategy):
    """With the bridge of a fit, as after it."""
    bridge, module = FlowerBridge(), Lit()
    trainer(strategy, bridge).fit(module, loader(20))
    before = bridge.update.digest
    trainer(strategy, bridge).validate(module, loader(51), verbose=False)
    iterable = FlowerBridge()
    trainer(strategy, iterable, epochs=1).fit(Lit(), DataLoader(Stream(), batch_size=10))
    return {
        "counts": [bridge.evaluation.num_examples, bridge.update.num_examples],
        "metrics": sorted(bridge.evaluation.metrics),
        "update_kept": bridge.update.digest == before,
    }


def spool(strategy):
    """With a spool the epochs lie where they were asked to, and stay."""
    with tempfile.TemporaryDirectory() as root:
        bridge = FlowerBridge(keep=1, submit="mean", spool_dir=root)
        trainer(strategy, bridge).fit(Lit(), loader(20))
        described = describe(bridge)
        del bridge
        return {"fit": described, "files": len(list(Path(root).rglob("epochs/*.safetensors")))}


def app(strategy):
    """A whole client over two processes."""
    client = client_app(
        Lit, data=lambda _: loader(101), trainer={"accelerator": "cpu", "devices": 2, "strategy": strategy}
    )
    reply = client(instruction("train"), context())
    evaluated = client(instruction("evaluate"), context())
    return {
        "weights": {k: v.ravel().tolist() for k, v in from_record(reply.content["arrays"]).items()},
        "counts": [reply.content["metrics"]["num-examples"], evaluated.content["metrics"]["num-examples"]],
        "metrics": sorted(evaluated.content["metrics"]),
    }


class Masked(Lit):
    def __init__(self):
        super().__init__()
        self.layer = MaskedModule(torch.nn.Linear(3, 1), seed=0)


def masks(strategy):
    """The server says that θ is what the module starts from, which only the workers have built."""
    exchange, info = MaskExchange(), RoundInfo(server_round=1)
    first = exchange.start(Masked().state_dict())
    wire = exchange.to_holder(first, info, Held(exchange.keepsake(first)))
    message = instruction("train")
    message.content["arrays"] = to_record(wire, exchange.coded)
    given = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
    home = context()
    with tempfile.TemporaryDirectory() as states:
        client = client_app(Masked, lambda _: loader(101), given, exchange=exchange, keep_local=states)
        reply = client(message, home)
        files = len(list(Path(states).rglob("held.safetensors")))
    read = exchange.from_client(from_record(reply.content["arrays"]), first, replace(info, client_id="a"))
    held = from_record(home.state["held"])
    return {
        "mask": len(read["masks"]),
        "held": held["masks.counts"].tolist(),
        "first": first["masks.counts"].tolist(),
        "files": files,
    }


class WithAdam(Lit):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)


def round_seed(server_round):
    return derive_seed(0, server_round, "a", "train")


class TakesWeights(Callback):
    """Starts every epoch from the weights that the server sends, and shuffles as in a round of its own."""

    def on_train_epoch_start(self, trainer, module):
        trainer.train_dataloader.sampler.seed = round_seed(trainer.current_epoch + 1)
        with torch.no_grad():
            module.layer.weight.fill_(0.5)
            module.layer.bias.fill_(0.0)


def keeps(strategy):
    """A client asked three times, whose optimizer is kept in files, and one long fit."""
    local = trainer(strategy, TakesWeights(), epochs=3)
    module = WithAdam()
    with seeded_ranks(round_seed(1)):
        local.fit(module, loader(101))
    with tempfile.TemporaryDirectory() as root:
        options = {"accelerator": "cpu", "devices": 2, "strategy": strategy}
        client = client_app(WithAdam, lambda _: loader(101), options, keep_optimizer=root)
        to = context()
        replies = [client(instruction("train", server_round), to) for server_round in (1, 2, 3)]
        kept = sorted(path.name for path in Path(root).glob("*/*/round-*"))
    return {
        "kept": digest(from_record(replies[-1].content["arrays"])),
        "lived_on": digest({k: v.numpy() for k, v in module.state_dict().items()}),
        "differ": len({digest(from_record(reply.content["arrays"])) for reply in replies}),
        "steps": [reply.content["client"]["steps"] for reply in replies],
        "folders": kept,
        "noted": to.state["kept-state"]["round"],
    }


def sharded(_):
    """Here the strategy starts this script once more; results are in the first process."""
    bridge = FlowerBridge(keep="all")
    bridge.receive(from_record(instruction("train").content["arrays"]))
    local = trainer(ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), bridge)
    local.fit(Sharded(), loader(40))
    return describe(bridge) if local.is_global_zero else {}


def replicated(_):
    """Both processes work on the same batches, as under tensor parallelism."""
    bridge = FlowerBridge()
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    local = trainer(strategy, bridge, epochs=1, limit_train_batches=2)
    local.fit(Sharded(), loader(40))
    return describe(bridge) if local.is_global_zero else {}


if __name__ == "__main__":
    strategy, *tasks = sys.argv[1:]
    torch.set_num_threads(1)
    results = {task: globals()[task](strategy) for task in tasks}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("RESULT", json.dumps(results))
