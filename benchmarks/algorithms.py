"""Algorithms on digits: accuracy by round and by bytes.

    python benchmarks/algorithms.py                  # three seeds (about five minutes on two idle cores)
    python benchmarks/algorithms.py --seeds 1 --rounds 5 --jobs 1

A perceptron 64-32-10 on scikit-learn's digits: 1347 to train, 450 to test. The training examples are sorted
by label and cut into two shards for each of 10 clients, all of which take part in every round: 2 local
epochs of batches of 16, SGD at 0.1. Of FedRep each client has its own last layer, so that there is no global
model; of it and of Ditto clients' own models are tested on test examples of the client's labels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from bridge import quieten
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_fl_ext import (
    Ditto,
    ExactFedAdagrad,
    ExactFedAdam,
    ExactFedAvg,
    ExactFedAvgM,
    ExactFedYogi,
    FedDyn,
    FederatedTrainer,
    FedNova,
    FedProx,
    FedRep,
    GeometricMedian,
    LocalGrid,
    RobustFedAvg,
    Scaffold,
    WeightExchange,
    client_app,
)

CLIENTS = 10
SHOWN = 1, 2, 5, 10, 20
MEGABYTES = 2.1, 4.1
"""What FedAvg sends in 10 and in 20 rounds, and a little."""

STRATEGIES: dict[str, Callable[..., ExactFedAvg]] = {
    "FedAvg": ExactFedAvg,
    "FedProx": lambda **options: FedProx(0.1, **options),
    "SCAFFOLD": Scaffold,
    "FedNova": FedNova,
    "FedDyn": lambda **options: FedDyn(0.05, **options),
    "Ditto": lambda **options: Ditto(0.1, **options),
    "FedRep": FedRep,
    "FedAvgM": lambda **options: ExactFedAvgM(1.0, 0.5, **options),
    "FedAdam": lambda **options: ExactFedAdam(0.03, **options),
    "FedYogi": lambda **options: ExactFedYogi(0.03, **options),
    "FedAdagrad": lambda **options: ExactFedAdagrad(0.1, tau=0.01, **options),
    "RFA": lambda **options: RobustFedAvg(GeometricMedian(), **options),
}

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images = torch.tensor(images[order] / 16, dtype=torch.float32)
labels = torch.tensor(labels[order])
digits = TensorDataset(images, labels)
TEST, TRAIN = range(450), range(450, len(labels))


class LitDigits(L.LightningModule):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        self.head = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("own_accuracy", accuracy, batch_size=len(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Shards(L.LightningDataModule):
    """Two shards of the training examples by label, and the test examples of their labels."""

    def __init__(self, client: int, seed: int) -> None:
        super().__init__()
        train = np.array(TRAIN)
        by_label = train[np.argsort(labels[train].numpy(), kind="stable")]
        shards = np.array_split(by_label, 2 * CLIENTS)
        first, second = np.random.default_rng(seed).permutation(2 * CLIENTS).reshape(CLIENTS, 2)[client]
        self.own = np.concatenate([shards[first], shards[second]])
        there = set(labels[self.own].tolist())
        self.test = [i for i in TEST if int(labels[i]) in there]

    def train_dataloader(self) -> Any:
        return DataLoader(Subset(digits, self.own.tolist()), batch_size=16, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Subset(digits, self.test), batch_size=450)


def federate(name: str, seed: int, rounds: int) -> dict[str, Any]:
    """Accuracy and megabytes, up and down together, by round."""
    personal = name in ("Ditto", "FedRep")
    exchange = WeightExchange(exclude="head.*" if name == "FedRep" else ())

    def evaluate(model: Any) -> dict[str, float]:
        model.eval()
        return {"accuracy": (model(images[TEST]).argmax(1) == labels[TEST]).float().mean().item()}

    def data(context: Any) -> Shards:
        return Shards(int(context.node_config["partition-id"]), seed)

    with tempfile.TemporaryDirectory(prefix="algorithms-") as folder:
        trainer = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "limit_val_batches": 0}
        client = client_app(
            LitDigits,
            data,
            lambda round: trainer | ({"limit_val_batches": 1.0} if personal else {}),
            exchange=exchange,
            keep_local=folder,
        )
        strategy = STRATEGIES[name](fraction_evaluate=1.0 if personal else 0.0)
        server = FederatedTrainer(rounds, strategy, seed=seed, exchange=exchange, enable_progress_bar=False)
        server.fit(LitDigits, LocalGrid(client, CLIENTS), evaluate=None if name == "FedRep" else evaluate)
    records = [record for record in server.rounds if record.server_round]
    own = {"Ditto": "personal_own_accuracy", "FedRep": "own_accuracy"}.get(name)
    return {
        "global": [record.metrics.get("server_accuracy", float("nan")) for record in records],
        "own": [record.metrics[own] for record in records] if own else None,
        "bytes": np.cumsum([record.metrics["bytes_up"] + record.metrics["bytes_down"] for record in records]),
    }


def compare(seeds: int, rounds: int, jobs: int, plot: str | None) -> None:
    shown = [n for n in SHOWN if n <= rounds]
    heads = [*(f"{n}" for n in shown), *(f"{most:g} MB" for most in MEGABYTES), "range"]
    print(
        f"Accuracy after a round, and within so many megabytes: mean of {seeds} seeds (least to most in the"
    )
    print("last round).\n\n| | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|", flush=True)
    curves: dict[str, tuple[Any, Any]] = {}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=quieten)
    told = {name: [pool.submit(federate, name, seed, rounds) for seed in range(seeds)] for name in STRATEGIES}
    for name, outcomes in told.items():
        runs = [outcome.result() for outcome in outcomes]
        for kind, label in (("global", name), ("own", f"{name}: own models")):
            if runs[0][kind] is None or np.isnan(runs[0][kind]).all():
                continue
            values, megabytes = np.array([run[kind] for run in runs]), runs[0]["bytes"] / 1e6
            curves[label] = values, megabytes
            within = [max(int((megabytes <= most).sum()), 1) for most in MEGABYTES]
            means = [f"{values[:, n - 1].mean():.3f}" for n in (*shown, *within)]
            ends = values[:, shown[-1] - 1]
            row = [label, *means, f"{ends.min():.3f}–{ends.max():.3f}"]
            print("| " + " | ".join(row) + " |", flush=True)
    if plot:
        draw(curves, plot)


def draw(curves: dict[str, tuple[Any, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), sharey=True, layout="constrained")
    for place, (label, (values, megabytes)) in enumerate(curves.items()):
        style, color = "--" if "own" in label else "-", plt.get_cmap("tab20")(place)
        line = left.plot(range(1, values.shape[1] + 1), values.mean(0), style, label=label, color=color)[0]
        right.plot(megabytes, values.mean(0), style, color=line.get_color())
        left.fill_between(
            range(1, values.shape[1] + 1), values.min(0), values.max(0), color=line.get_color(), alpha=0.12
        )
    left.set(xlabel="round", ylabel="accuracy")
    right.set(xlabel="MB, up and down, all clients")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside right")
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="federations at a time")
    parser.add_argument("--plot", default=None)
    chosen = parser.parse_args()
    quieten()
    compare(chosen.seeds, chosen.rounds, chosen.jobs, chosen.plot)
