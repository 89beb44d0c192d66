"""Robust rules: speed beside numpy's own, and accuracy on digits with bad clients among ten.

    python benchmarks/robust.py speed       # 10 updates of a million float32; half a minute
    python benchmarks/robust.py accuracy    # 7 strategies, 10 columns, 3 seeds of 10 rounds; some minutes

Speed: both start from the updates in memory and end with a new array; they take turns, in an order drawn anew
each time, and the best of the repeats counts. Accuracy: scikit-learn's digits, a quarter of them held out, a
net of one hidden layer, ten clients. Every column but "skewed" shares the digits out evenly; there, each
client has two shards of digits sorted by label. Attackers train as the others do, and send something else.
"""

from __future__ import annotations

import argparse
import logging
import random
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from lightning_fl_ext import (
    CentredClipping,
    CoordinateMedian,
    ExactFedAvg,
    FederatedTrainer,
    GeometricMedian,
    KrumSelection,
    LocalGrid,
    RobustFedAvg,
    TrimmedMean,
)
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.seeds import derive_seed
from lightning_fl_ext.wire import from_record, to_record

Matrix = NDArray[np.float32]


# Speed


def krum_by_numpy(x: Matrix, malicious: int, select: int) -> Matrix:
    """Score by squared distances, and average the best."""
    squared = np.zeros((len(x), len(x)), np.float32)
    for i, j in combinations(range(len(x)), 2):
        squared[i, j] = squared[j, i] = np.sum((x[i] - x[j]) ** 2)
    scores = np.sort(squared, axis=1)[:, 1 : len(x) - malicious - 1].sum(axis=1)
    mean: Matrix = x[np.argsort(scores)[:select]].mean(axis=0)
    return mean


def weiszfeld_by_numpy(x: Matrix, iterations: int) -> Matrix:
    """Start from the median, as the rule does."""
    centre = np.median(x, axis=0)
    for _ in range(iterations):
        weights = 1 / np.maximum(1e-6, np.linalg.norm(x - centre, axis=1))
        centre = (weights[:, None] * x).sum(axis=0) / weights.sum()
    return centre


def clipping_by_numpy(x: Matrix, radius: float, iterations: int) -> Matrix:
    """Start from zero, the global weights."""
    centre = np.zeros_like(x[0])
    for _ in range(iterations):
        steps = x - centre
        shares = np.minimum(1, radius / np.linalg.norm(steps, axis=1))
        centre = centre + (steps * shares[:, None]).mean(axis=0)
    return centre


def speed(size: int, clients: int, repeats: int) -> None:
    """Print the table of both times."""
    x = np.random.default_rng(0).standard_normal((clients, size), dtype=np.float32)
    like, updates = {"w": np.zeros(size, np.float32)}, [{"w": row} for row in x]
    cut = clients // 5
    pairs: dict[str, tuple[Any, Callable[[], Matrix]]] = {
        "CoordinateMedian()": (CoordinateMedian(), lambda: np.median(x, axis=0)),
        "TrimmedMean(0.2)": (TrimmedMean(0.2), lambda: np.sort(x, axis=0)[cut:-cut].mean(axis=0)),
        "KrumSelection(2)": (KrumSelection(2), lambda: krum_by_numpy(x, 2, 1)),
        "KrumSelection(2, select=6)": (KrumSelection(2, 6), lambda: krum_by_numpy(x, 2, 6)),
        "GeometricMedian(3)": (GeometricMedian(3), lambda: weiszfeld_by_numpy(x, 3)),
        "CentredClipping(100.0)": (CentredClipping(100.0), lambda: clipping_by_numpy(x, 100.0, 3)),
    }
    works: dict[tuple[str, str], Callable[[], object]] = {}
    for name, (rule, by_numpy) in pairs.items():
        works[name, "rule"] = lambda rule=rule: rule(like, updates)
        works[name, "numpy"] = by_numpy
        np.testing.assert_allclose(rule(like, updates)["w"], by_numpy(), rtol=1e-3, atol=1e-4)
    best = dict.fromkeys(works, float("inf"))
    for turn in range(repeats):
        for key in random.Random(turn).sample(list(works), len(works)):
            start = time.perf_counter()
            works[key]()
            best[key] = min(best[key], time.perf_counter() - start)
    print(f"{clients} updates of {size} float32, numpy {np.__version__}")
    print(f"{'':28}{'ms':>8}{'numpy ms':>10}{'of numpy':>10}")
    for name in pairs:
        rule_s, numpy_s = best[name, "rule"], best[name, "numpy"]
        print(f"{name:28}{rule_s * 1e3:8.0f}{numpy_s * 1e3:10.0f}{rule_s / numpy_s:9.2f}x")


# Accuracy

ROUNDS, CLIENTS, TRAIN, EPOCHS, BATCH, RATE = 10, 10, 1340, 2, 32, 0.5

OPTIONS: dict[str, Any] = {"fraction_evaluate": 0.0, "min_evaluate_nodes": 0}
RULES = {
    "ExactFedAvg()": None,
    "CoordinateMedian()": CoordinateMedian(),
    "TrimmedMean(0.3)": TrimmedMean(0.3),
    "KrumSelection(3)": KrumSelection(3),
    "KrumSelection(3, select=5)": KrumSelection(3, select=5),
    "GeometricMedian()": GeometricMedian(),
    "CentredClipping(1.0)": CentredClipping(1.0),
}

Attack = Callable[[NDArray[np.float64], int, int], NDArray[np.float64]]
"""From an honest change of one array, the round and the seed to what is sent instead."""


def noise(change: NDArray[np.float64], server_round: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng((server_round, seed)).normal(0, 1, change.shape)


def shift(change: NDArray[np.float64], server_round: int, seed: int) -> NDArray[np.float64]:
    """The same for all attackers and rounds: about four times as long as an honest change."""
    return np.full(change.shape, 0.1) * np.sign(np.random.default_rng(change.size).normal(size=change.shape))


ATTACKS: dict[str, Attack] = {
    "sign flip": lambda change, *_: -change,
    "x 100": lambda change, *_: 100 * change,
    "noise": noise,
    "colluding shift": shift,
}
COLUMNS: list[tuple[str, int]] = [("none", 0), ("skewed", 0)]
COLUMNS += [(attack, attackers) for attack in ATTACKS for attackers in (2, 3)]


class Net(nn.Sequential):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def shares(labels: NDArray[Any], skewed: bool, seed: int) -> list[NDArray[Any]]:
    """Give each client's rows: a tenth of all, or two shards of digits sorted by label."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))
    if not skewed:
        return np.array_split(rows, CLIENTS)
    shards = np.array_split(rows[np.argsort(labels[rows], kind="stable")], 2 * CLIENTS)
    order = rng.permutation(2 * CLIENTS).reshape(CLIENTS, 2)
    return [np.concatenate([shards[i] for i in pair]) for pair in order]


def local_fit(arrays: Arrays, x: torch.Tensor, y: torch.Tensor, seed: int) -> Arrays:
    """Train by plain SGD."""
    net = Net()
    net.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    rng = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for batch in torch.tensor(rng.permutation(len(y))).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def accuracies(strategy: Strategy, rounds: int, column: str, attackers: int, seed: int) -> list[float]:
    """Federate, and give the accuracy on the digits held out, before the first round and after each."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = torch.tensor(images[order] / 16, dtype=torch.float32), torch.tensor(labels[order])
    rows = shares(labels[order][:TRAIN], column == "skewed", seed)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        arrays, mine = from_record(message.content["arrays"]), rows[client]
        own = derive_seed(seed, server_round, str(client), "fit")
        sent = local_fit(arrays, x[mine], y[mine], own)
        if client < attackers:
            sent = {
                name: (arrays[name] + ATTACKS[column](sent[name] - arrays[name], server_round, own)).astype(
                    np.float32
                )
                for name in arrays
            }
        metrics = MetricRecord({"num-examples": len(mine)})
        return Message(RecordDict({"arrays": to_record(sent), "metrics": metrics}), reply_to=message)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"accuracy": float((model(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean())}

    trainer = FederatedTrainer(rounds, strategy, seed=seed, enable_progress_bar=False)
    trainer.fit(Net, LocalGrid(app, CLIENTS), evaluate=evaluate)
    return [record.metrics["server_accuracy"] for record in trainer.rounds]


def final_accuracy(rule: str, column: str, attackers: int, seed: int) -> float:
    """Give the accuracy after the last round."""
    chosen = RULES[rule]
    strategy = ExactFedAvg(**OPTIONS) if chosen is None else RobustFedAvg(chosen, **OPTIONS)
    return accuracies(strategy, ROUNDS, column, attackers, seed)[-1]


def accuracy(seeds: int) -> None:
    """Print the table, as the documentation has it."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    heads = [column if not attackers else f"{column}, {attackers}" for column, attackers in COLUMNS]
    print("| rule | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for rule in RULES:
        cells = []
        for column, attackers in COLUMNS:
            reached = [100 * final_accuracy(rule, column, attackers, seed) for seed in range(seeds)]
            cells.append(f"{np.mean(reached):.0f}")
        print(f"| `{rule}` | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["speed", "accuracy"])
    parser.add_argument("--size", type=int, default=1_000_000, help="numbers in an update (speed)")
    parser.add_argument("--clients", type=int, default=10, help="updates (speed)")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each (speed)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of which the mean is told (accuracy)")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.size, arguments.clients, arguments.repeats)
    else:
        accuracy(arguments.seeds)


if __name__ == "__main__":
    main()
