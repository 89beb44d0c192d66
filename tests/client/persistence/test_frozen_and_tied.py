"""Frozen and tied tensors and persistent metrics: what of them travels, and what is kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from _local_parts import CLIENTS, DEVICE, ROUNDS, Adapted, Net, Tied, client_of, federate, files, loader
from torch import nn
from torchmetrics import MeanMetric

from lightning_fl_ext import WeightExchange, client_app

# What is frozen


def test_what_is_frozen_is_alike_in_every_round_and_not_stored():
    bodies = {client: [] for client in range(CLIENTS)}

    class Shows(Adapted):
        def on_train_start(self):
            bodies[client_of(self)].append(self.body.weight.detach().clone())

    exchange = WeightExchange(include="head.*")
    federate(
        client_app(Shows, loader, DEVICE, exchange=exchange), Adapted, rounds=3, exchange=exchange, fraction=0
    )
    for first, *later in bodies.values():
        assert all(torch.equal(first, body) for body in later)
    assert not files()


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.filterwarnings("ignore:.*bf16-true.*")
def test_what_changes_is_stored_though_it_is_frozen_or_a_buffer(keep_optimizer, precision):
    class Target(Adapted):
        """As in BYOL: a frozen network that follows the trained one."""

        def __init__(self):
            super().__init__()
            self.target = nn.Linear(4, 1).requires_grad_(False)
            self.register_buffer("steps", torch.tensor(0))

        def on_train_batch_end(self, *_):
            self.steps += 1
            with torch.no_grad():
                self.target.weight.lerp_(self.head.weight, 0.1)

        def forward(self, x):
            return super().forward(x.to(self.head.weight.dtype)).float()

    exchange = WeightExchange(include="head.*")
    trainer = {**DEVICE, "precision": precision}
    client = client_app(Target, loader, trainer, exchange=exchange, keep_optimizer=keep_optimizer)
    federate(client, Target, rounds=2, exchange=exchange, fraction=0)
    for path in Path(os.environ["XDG_STATE_HOME"]).rglob("state.json"):
        local = dict(json.loads(path.read_text())["state"]["dict"])["local"]["dict"]
        assert [name for name, _ in local] == ["steps", "target.weight"]


def test_an_entry_that_changes_back_is_forgotten():
    class Toggles(Adapted):
        def __init__(self):
            super().__init__()
            self.register_buffer("flag", torch.tensor(0.0))

        def on_train_end(self):
            self.flag += 1 if self.flag == 0 else -1

    exchange, seen = WeightExchange(include="head.*"), []

    class Shows(Toggles):
        def on_train_start(self):
            seen.append(float(self.flag))

    federate(
        client_app(Shows, loader, DEVICE, exchange=exchange), Toggles, rounds=4, exchange=exchange, fraction=0
    )
    assert seen == [0.0] * CLIENTS + [1.0] * CLIENTS + [0.0] * CLIENTS + [1.0] * CLIENTS


# Tied tensors


@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.parametrize(
    "exchange",
    [WeightExchange(exclude="out.*"), WeightExchange(include=("head.*", "bn.*", "body.*"))],
    ids=str,
)
def test_a_tied_tensor_that_travels_under_one_name_begins_each_round_as_received(exchange, keep_optimizer):
    off = []

    class Shows(Tied):
        def on_train_start(self):
            received = self.trainer.callbacks[0]._global
            off.append(np.abs(received["head.weight"] - self.out.weight.detach().numpy()).max())

    client = client_app(Shows, loader, DEVICE, exchange=exchange, keep_optimizer=keep_optimizer)
    federate(client, Tied, exchange=exchange, fraction=0)
    assert off == [0.0] * CLIENTS * ROUNDS


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.filterwarnings("ignore:.*bf16-true.*")
def test_tied_tensors_cross_the_wire_once(precision):
    class Half(Tied):
        def forward(self, x):
            return super().forward(x.to(self.body.weight.dtype)).float()

    trainer = federate(
        client_app(Half, loader, {**DEVICE, "precision": precision}), Half, rounds=2, fraction=0
    )
    assert "out.weight" not in trainer.arrays
    numbers = sum(parameter.numel() for parameter in Half().parameters())
    assert trainer.rounds[0].metrics["bytes_up"] < CLIENTS * (4 * numbers + 200 * len(trainer.arrays))
    assert trainer.model.out.weight is trainer.model.head.weight


# States of metrics


class Measured(Net):
    def __init__(self):
        super().__init__()
        self.seen = MeanMetric()
        self.seen.persistent(True)

    def training_step(self, batch, batch_idx):
        self.seen.update(batch[0])
        return super().training_step(batch, batch_idx)


def test_persistent_metrics_neither_travel_nor_are_kept():
    trainer = federate(client_app(Measured, loader, DEVICE), Measured, rounds=2)
    plain = federate(client_app(Net, loader, DEVICE), Net, rounds=2)
    assert list(trainer.arrays) == list(plain.arrays)
    assert not files()


def test_a_pattern_may_still_name_a_persistent_metric():
    exchange = WeightExchange(exclude="seen.*")
    federate(client_app(Measured, loader, DEVICE, exchange=exchange), Measured, rounds=1, exchange=exchange)
