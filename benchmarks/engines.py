"""Engines: 1000 clients that do nothing and 200 that fit, in this process and on Flower's Ray simulation.

``python benchmarks/engines.py`` takes some minutes; ``--quick`` runs a tenth of the clients. The same two
apps run on both engines: `server_app` around a `FederatedTrainer` with `ExactFedAvg`, and a client that sends
back what it is given, or `client_app` with a real `Trainer` that fits a tiny module for an epoch of two
batches. Ray has an actor for each core.

Each measurement has a process of its own. Start is the time until the first client is asked to train:
importing is done by then, but Ray has to start. A round's time is the median of the rounds after the first,
in which Ray's actors import what they need. Memory is the largest sum over all processes of what belongs to
them alone and their part of what they share (PSS), less what this process took before the run began.
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
import warnings
from collections.abc import Iterator
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


class Stopwatch(RoundCallback):
    """Notes when each round begins, and when the last one ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_round_start(self, trainer: FederatedTrainer) -> None:
        self.times.append(time.perf_counter())

    on_fit_end = on_round_start


@contextlib.contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Look at the memory of this process and all it starts, again and again; note the most, in MB."""
    this, stop, found = psutil.Process(), threading.Event(), {"peak": 0.0, "processes": 1}

    def look() -> float:
        total = 0.0
        family = [this, *this.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss / 1e6
        found["processes"] = max(found["processes"], len(family))
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


def measure(engine: str, work: str, clients: int, rounds: int) -> dict[str, float]:
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
    took = [after - before for before, after in zip(stopwatch.times, stopwatch.times[1:], strict=False)]
    return {
        "start": stopwatch.times[0] - start,
        "first": 1e3 * took[0] / clients,
        "next": 1e3 * statistics.median(took[1:]) / clients,
        "digest": trainer.result.digest,  # type: ignore[dict-item]
        **memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the clients")
    parser.add_argument("--rounds", type=int, default=4, help="default: 4")
    parser.add_argument(
        "--one", nargs=3, metavar=("ENGINE", "WORK", "CLIENTS"), help="one measurement, as JSON"
    )
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("the first round is not measured: --rounds must be at least 2")
    if arguments.one:
        engine, work, clients = arguments.one
        print(json.dumps(measure(engine, work, int(clients), arguments.rounds)))
        return
    print(f"{arguments.rounds} rounds, {CORES} cores; ms are per client and round")
    print(f"{'':28} {'start':>8} {'round 1':>10} {'later':>10} {'memory':>9} {'processes':>10}")
    for work, clients in WORK.items():
        clients = clients // 10 if arguments.quick else clients
        found = {}
        for engine, name in ENGINES.items():
            command = [sys.executable, __file__, "--rounds", str(arguments.rounds)]
            command += ["--one", engine, work, str(clients)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            of = found[engine] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{clients:5} x {work:8} {name:14} {of['start']:6.1f} s {of['first']:7.2f} ms"
                f" {of['next']:7.2f} ms {of['peak']:6.0f} MB {of['processes']:10.0f}",
                flush=True,
            )
        here, ray = found["local"], found["ray"]
        same = "the same digest" if here["digest"] == ray["digest"] else "ANOTHER digest"
        print(
            f"{'':12} Ray / this process: {ray['next'] / here['next']:.2f} x the time of a later round,"
            f" {ray['peak'] / max(here['peak'], 1):.1f} x the memory, {same}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for noisy in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "flwr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    main()
    HOME.cleanup()
