"""Engines: 1000 clients that do nothing and 200 that fit, in this process and on Flower's Ray simulation.

``python benchmarks/engines.py`` takes some minutes; ``--quick`` runs a tenth of the clients. The same two
apps run on both engines: `server_app` around a `FederatedTrainer` with `ExactFedAvg`, and a client that sends
back what it is given, or `client_app` with a real `Trainer` that fits a tiny module for an epoch of two
batches. Ray has an actor for each core.

Each measurement has a process of its own. Start is the time until the first client is asked to train:
importing is done by then, but Ray has to start. A round's time is the median of the rounds after the first,
in which Ray's actors import what they need. Memory is the largest sum over all processes of what belongs to
them alone and their part of what they share (PSS), less what this process took before the run began.
"Processors" is the processor time of all of them in a later round, which other work on the machine disturbs
least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

HOME = tempfile.TemporaryDirectory(prefix="flwr-home-")
os.environ |= {
    "FLWR_HOME": HOME.name,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import lightning.pytorch as L  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from lightning_fl_ext import (  # noqa: E402
    ExactFedAvg,
    FederatedTrainer,
    RoundCallback,
    client_app,
    run_local,
    server_app,
)

WORK = {"nothing": 1000, "fit": 200}
ENGINES = {"local": "this process", "ray": "Ray simulation"}
CORES = os.cpu_count() or 1


class Lit(L.LightningModule):
    """A perceptron of 2762 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def data(context: Context) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x = torch.randn(32, 32, generator=generator)
    return DataLoader(TensorDataset(x, x.argmax(1) % 10), batch_size=16)


def idle() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    @app.query()
    def query(message: Message, context: Context) -> Message:
        name = str(context.node_config["partition-id"])
        return Message(RecordDict({"client": ConfigRecord({"client-id": name})}), reply_to=message)

    return app


def family() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


class Stopwatch(RoundCallback):
    """Notes the time, and the processor time of all processes, as each round begins and the last one ends."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.work: list[float] = []

    def on_round_start(self, trainer: FederatedTrainer) -> None:
        self.times.append(time.perf_counter())
        self.work.append(0.0)
        for process in family():
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                self.work[-1] += used.user + used.system

    on_fit_end = on_round_start


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Look at the memory of this process and all it starts, again and again; note the most, in MB."""
    stop, found = threading.Event(), {"peak": 0.0, "processes": 1}

    def look() -> float:
        total, processes = 0.0, family()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss / 1e6
        found["processes"] = max(found["processes"], len(processes))
        return total

    before = look()

    def watch() -> None:
        while not stop.wait(0.5):
            found["peak"] = max(found["peak"], look() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
        found["peak"] = max(found["peak"], look() - before)


def measure(engine: str, work: str, clients: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    for noisy in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "flwr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    stopwatch = Stopwatch()
    strategy = ExactFedAvg(fraction_evaluate=0.0, min_available_nodes=clients)
    trainer = FederatedTrainer(
        rounds, strategy, callbacks=[stopwatch], default_root_dir=HOME.name, enable_progress_bar=False
    )
    server = server_app(Lit, trainer)
    client = idle() if work == "nothing" else client_app(Lit, data, {"accelerator": "cpu"}, num_threads=1)
    with watched() as memory:
        start = time.perf_counter()
        if engine == "local":
            run_local(server, client, clients)
        else:
            from flwr.simulation import run_simulation

            resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": CORES}}
            run_simulation(server, client, clients, backend_config=resources)
    assert trainer.result is not None
    assert all(len(record.accepted) == clients for record in trainer.rounds), "a client was left out"
    first, *later = (1e3 * (after - before) / clients for before, after in pairwise(stopwatch.times))
    work = [1e3 * (after - before) / clients for before, after in pairwise(stopwatch.work)]
    return {
        "start": stopwatch.times[0] - start,
        "first": first,
        "later": statistics.median(later),
        "work": statistics.median(work[1:]),
        "digest": trainer.result.digest,
        **memory,
    }


def in_a_process_of_its_own(*arguments: Any) -> dict[str, Any]:
    """Measure; this module is imported there, as `flwr run` imports an app, not pickled piece by piece."""
    program = f"import engines, json; print(json.dumps(engines.measure{arguments}))"
    command = [sys.executable, "-W", "ignore", "-c", program]
    folder = {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=os.environ | folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the clients")
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("the first round is not measured: --rounds must be at least 2")
    print(f"{arguments.rounds} rounds, {CORES} cores; ms per client and round")
    print(f"{'':30}    start    round 1      later  processors    memory  processes")
    for work, clients in WORK.items():
        clients = clients // 10 if arguments.quick else clients
        found = {}
        for engine, name in ENGINES.items():
            of = found[engine] = in_a_process_of_its_own(engine, work, clients, arguments.rounds)
            print(
                f"{clients:5} x {work:7} {name:14} {of['start']:6.1f} s {of['first']:7.2f} ms"
                f" {of['later']:7.2f} ms  {of['work']:7.2f} ms {of['peak']:6.0f} MB {of['processes']:10}",
                flush=True,
            )
        here, ray = found["local"], found["ray"]
        same = "the same digest" if here["digest"] == ray["digest"] else "ANOTHER digest"
        print(
            f"        Ray / this process: {ray['later'] / here['later']:.2f} x the time of a later round,"
            f" {ray['work'] / here['work']:.2f} x the processor time, {ray['peak'] / here['peak']:.0f} x the"
            f" memory, {same}"
        )


if __name__ == "__main__":
    main()
