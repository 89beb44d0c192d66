"""What a fit in two processes costs: seconds and memory to start them, by who starts them.

``python benchmarks/launcher.py`` runs everything (two to three minutes on two cores). Wall time of a whole
message to a client, whose fit is of one batch, the least of several interleaved runs; and processor time, of
the processes that were started and have ended, which a busy machine changes less. Memory is what the
started processes have of their own (unique set size) at the worst moment, together; what forked ones share
with the client is not in it.
"""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import psutil
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import LocalGrid, client_app
from lightning_fl_ext.wire import to_record


class Lit(L.LightningModule):
    """A linear layer: the fit itself costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def data(context: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)


def app(devices: int = 2, launcher: Any = "auto", **trainer: Any) -> ClientApp:
    options = {"accelerator": "cpu", "devices": devices, **trainer}
    return client_app(Lit, data, options, keep_local=False, launcher=launcher)


one, in_process = app(1), app(1, None)
fork, spawn, launched = app(strategy="ddp_fork"), app(strategy="ddp_spawn"), app()
kept = app(launcher="kept")
torchrun = app(launcher=[sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"])

WAYS = {
    "`ddp_fork`": fork,
    "`ddp_spawn`": spawn,
    'an interpreter for each (`"auto"`)': launched,
    "`torchrun`": torchrun,
}


def ask(client: ClientApp) -> float:
    """Have a client fit once, and give the seconds it took."""
    grid = LocalGrid(client, num_clients=1)
    weights = {name: value.numpy() for name, value in Lit().state_dict().items()}
    config = ConfigRecord({"server-round": 1})
    (node,) = grid.get_node_ids()
    start = time.perf_counter()
    message = Message(RecordDict({"arrays": to_record(weights), "config": config}), node, "train")
    (reply,) = grid.send_and_receive([message])
    seconds = time.perf_counter() - start
    assert not reply.has_error(), reply.error
    return seconds


@contextmanager
def memory_of_started() -> Iterator[list[float]]:
    """Give the most MiB that processes started meanwhile have of their own, in a list of one."""
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            most[0] = max(most[0], total / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def starting(repeats: int = 3) -> None:
    """Print what each way to start two processes costs."""
    seconds, busy, memory = {}, {}, {}
    for _ in range(repeats):
        for name, client in WAYS.items():
            before = _busy()
            with memory_of_started() as most:
                took = ask(client)
            worked = _busy() - before
            busy[name] = min(worked, busy.get(name, worked))
            seconds[name] = min(took, seconds.get(name, took))
            memory[name] = min(most[0], memory.get(name, most[0]))
    print("| two processes by | seconds | of a processor | MiB |\n|---|---|---|---|")
    for name in WAYS:
        print(f"| {name} | {seconds[name]:.1f} | {busy[name]:.1f} | {memory[name]:.0f} |")


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keeping(messages: int = 4) -> None:
    """Print how long a client whose processes are kept waits for its first message, and for the next."""
    first, *others = (ask(kept) for _ in range(messages))
    another = min(others)
    print(f"kept: {first:.1f} s for the first message, {another:.2f} s for another: {another / first:.3f}")


def one_device(repeats: int = 50) -> None:
    """Print how long a fit of one device takes where a launcher may be asked for, and where none is."""
    least = {name: float("inf") for name in ("auto", "in-process")}
    for _ in range(repeats):
        for name, client in (("auto", one), ("in-process", in_process)):
            least[name] = min(least[name], ask(client))
    ratio = least["auto"] / least["in-process"]
    print(f"one device: {least['auto'] * 1000:.1f} ms with `launcher='auto'`, {ratio:.2f} times that of None")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ("starting", "keeping", "one_device"):
        {"starting": starting, "keeping": keeping, "one_device": one_device}[name]()
