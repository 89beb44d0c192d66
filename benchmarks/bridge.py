"""What the bridge costs: beside a fit without it, and a plain copy of the weights.

``python benchmarks/bridge.py`` runs everything (two to three minutes on two cores); name some of ``fit``,
``packing``, ``keeping``, ``memory`` to run those alone. Times of ``fit`` and ``packing`` are processor time
on one thread, the smallest of several interleaved runs; the others are wall time.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FlowerBridge, WeightExchange, client_app
from lightning_fl_ext.engines.private import ensure_identity
from lightning_fl_ext.wire import to_record

OFF = "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"
QUIET = {"accelerator": "cpu", "devices": 1, **dict.fromkeys(OFF, False)}


def quieten() -> None:
    """Compute on one thread, and say nothing that is no figure."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for noisy in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "flwr", "lightning_fl_ext"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


class Lit(L.LightningModule):
    """A perceptron of about a million parameters: 4 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 940), nn.ReLU(), nn.Linear(940, 940), nn.ReLU())
        self.head = nn.Linear(940, 10)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.head(self.net(x)), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(batches: int) -> DataLoader[Any]:
    data = TensorDataset(torch.randn(64 * batches, 64), torch.randint(10, (64 * batches,)))
    return DataLoader(data, batch_size=64)


def cheapest(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Run each piece of work in turn, several times, and give the smallest processor time of each."""
    seconds = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, run in work.items():
            gc.collect()
            start = time.process_time()
            kept = run()
            seconds[name] = min(seconds[name], time.process_time() - start)
            del kept
    return seconds


class TimedBridge(FlowerBridge):
    """Adds up the processor time of its own hooks."""

    seconds = 0.0

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("on_") and name not in ("setup", "teardown"):
            return value

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return value(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


def fit() -> None:
    epochs = 3

    def run(batches: int, *callbacks: Any) -> None:
        trainer = L.Trainer(**QUIET, max_epochs=epochs, callbacks=list(callbacks))
        trainer.fit(Lit(), loader(batches))

    run(5)
    probe = cheapest({"probe": lambda: run(40)}, 1)["probe"]
    batches = max(10, round(40 * epochs / probe))  # one second an epoch on this machine
    bridges: list[TimedBridge] = []

    def bridged() -> None:
        bridges.append(TimedBridge(keep="all"))
        bridges[-1].receive(WeightExchange().pack(Lit().state_dict()))
        run(batches, bridges[-1])
        assert len(bridges[-1].results) == epochs

    plain = lambda: run(batches)  # noqa: E731
    seconds = cheapest({"without": plain, "with": bridged, "without again": plain}, 4)
    without = min(seconds["without"], seconds["without again"])
    hooks = min(bridge.seconds for bridge in bridges)
    noise = abs(seconds["without"] - seconds["without again"])
    print(f"fit of {epochs} epochs of {without / epochs:.2f} s each, 4 MB model loaded, every epoch kept")
    print(f"  all hooks of the bridge  {100 * hooks / without:5.2f} % of the fit (target < 2 %)")
    print(f"  fits with and without    {100 * (seconds['with'] / without - 1):5.2f} % apart,")
    print(f"  two fits without         {100 * noise / without:5.2f} % apart: the noise of this measurement")


def packing() -> None:
    state = {f"layers.{i}.weight": torch.randn(512, 200) for i in range(100)}
    exchange = WeightExchange()
    packed = exchange.pack(state)
    seconds = cheapest(
        {
            "plain copy": lambda: [t.numpy().copy() for t in state.values()],
            "pack": lambda: exchange.pack(state),
            "to_record": lambda: to_record(packed),
            "pack and to_record": lambda: to_record(exchange.pack(state)),
            "Flower's ArrayRecord(state_dict)": lambda: ArrayRecord(state),  # type: ignore[arg-type]
        },
        15,
    )
    print("packing 100 tensors, 41 MB (target: pack and to_record within 1.5 x of a plain copy)")
    for name, value in seconds.items():
        print(f"  {name:34s} {1e3 * value:6.1f} ms  {value / seconds['plain copy']:5.2f} x")


class AdamLit(Lit):
    """Adam keeps twice the size of the weights."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-3)


def keeping() -> None:
    ensure_identity()
    from flwr.app import ConfigRecord, Context

    from lightning_fl_ext.client.persistence.state_folder import StateFolder

    record = to_record(WeightExchange().pack(AdamLit().state_dict()))
    config = ConfigRecord({"server-round": 1, "run-id": "run"})
    message = Message(RecordDict({"arrays": record, "config": config}), 7, "train")
    message.metadata.__dict__["_message_id"] = "1"
    with tempfile.TemporaryDirectory(prefix="kept-", dir=".") as root:
        client = client_app(AdamLit, lambda _: loader(1), {"accelerator": "cpu"}, keep_optimizer=root)
        client(message, Context(1, 7, {"partition-id": 0}, RecordDict(), {}))
        folder = StateFolder(Path(root), "0", "run")
        seconds: dict[str, list[float]] = {"written and synced": [], "read and checked": []}
        for server_round in range(2, 32):
            start = time.perf_counter()
            kept = folder.find()
            read = time.perf_counter()
            assert kept is not None
            folder.write(replace(kept, server_round=server_round))
            seconds["read and checked"].append(read - start)
            seconds["written and synced"].append(time.perf_counter() - read)
        size = sum(p.stat().st_size for p in (folder.path / "round-00031").iterdir())
    weights = sum(len(array.data) for array in record.values())
    print("keeping the optimizer of a 4 MB model under Adam in this folder, the least and median of 30 times")
    for name, times in seconds.items():
        print(f"  {name:20s} {1e3 * min(times):6.1f} ms {1e3 * sorted(times)[15]:6.1f} ms")
    print(f"  on disk              {size / 1e6:6.2f} MB a round, {size / weights:.2f} x the weights")


def memory() -> None:
    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    ensure_identity()
    from flwr.app import Context

    client = client_app(Lit, lambda _: loader(1), {"accelerator": "cpu", "devices": 1})
    record = to_record(WeightExchange().pack(Lit().state_dict()))
    print("resident memory over fits of a 4 MB model by client_app")
    for fits in range(301):
        message = Message(RecordDict({"arrays": record}), 7, "train")
        message.metadata.__dict__["_message_id"] = str(fits)
        client(message, Context(1, 7, {"partition-id": 0}, RecordDict(), {}))
        if fits in (1, 10, 100, 200, 300):
            print(f"  after {fits:3d}: {resident():6.0f} MiB")


if __name__ == "__main__":
    quieten()
    for part in sys.argv[1:] or ("packing", "fit", "keeping", "memory"):
        globals()[part]()
