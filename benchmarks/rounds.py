"""Whole rounds of many clients that do nothing, beside Flower's `FedAvg.start` over the same clients.

    python benchmarks/rounds.py            # 100 clients, 0.1 million float32 in ten layers; half a minute
    python benchmarks/rounds.py --quick    # seconds

Clients give back what they are sent, in this process. A round of `FederatedTrainer` asks, bounds, screens,
orders and digests every reply, folds it into the exact mean, and writes the record of the round; one of
`FedAvg.start` averages. Both over `LocalGrid`, which copies each message on its way. Processor time, on one
core, divided by rounds; contenders take turns.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, LocalGrid

ROUNDS = 3


def idle_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        return Message(
            RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message
        )

    return app


def ours(clients: int, net: torch.nn.Module) -> None:
    strategy = ExactFedAvg(fraction_evaluate=0.0, min_available_nodes=clients)
    trainer = FederatedTrainer(ROUNDS, strategy, enable_progress_bar=False)
    trainer.fit(net, LocalGrid(idle_app(), clients))


def flowers(clients: int, net: torch.nn.Module) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=clients)
    strategy.start(LocalGrid(idle_app(), clients), ArrayRecord(net.state_dict()), num_rounds=ROUNDS)


def milliseconds(run: Callable[[int, torch.nn.Module], None], clients: int, net: torch.nn.Module) -> float:
    start = time.process_time()
    run(clients, net)
    return (time.process_time() - start) * 1e3 / ROUNDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    repeats = 2 if parser.parse_args().quick else 9
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for clients, width in ((100, 100), (100, 10), (10, 100)):
        net = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(10)))
        size = sum(p.numel() for p in net.parameters())
        contenders = {"FederatedTrainer": ours, "FedAvg.start": flowers}
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for repeat in range(repeats + 1):
            for name, run in contenders.items():
                if repeat:  # the first warms up
                    found[name].append(milliseconds(run, clients, net))
                else:
                    run(clients, net)
        told = ", ".join(
            f"{name} {statistics.median(times):6.1f} ms (best {min(times):6.1f})"
            for name, times in found.items()
        )
        ratio = statistics.median(a / b for a, b in zip(*found.values(), strict=True))
        print(f"{clients:3} clients, {size:6} float32: {told}, median of ratios {ratio:.2f}")


if __name__ == "__main__":
    main()
