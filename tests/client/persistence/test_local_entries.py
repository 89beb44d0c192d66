"""What does not travel stays: whole federations, compared with clients whose modules lived on in memory."""

import json
import logging
import os
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LocalGrid,
    RoundCallback,
    RoundCheckpoint,
    WeightExchange,
    client_app,
)
from lightning_fl_ext.server import CallbackError

CLIENTS, ROUNDS = 4, 3
DEVICE = {"accelerator": "cpu", "devices": 1}


class Net(L.LightningModule):
    """A body, a batch norm and a head, trained without chance."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.bn(self.body(x)).tanh())

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def rows(client):
    """Data that is scaled and shifted differently on every client."""
    rng = np.random.default_rng(client)
    x = torch.from_numpy((rng.normal(size=(12 + 4 * client, 3)) * (1 + client) + client).astype(np.float32))
    return TensorDataset(x, x.mean(1, keepdim=True).sin())


def loader(context):
    return DataLoader(rows(context.node_config["partition-id"]), batch_size=4)


def federate(client, model=Net, rounds=ROUNDS, evaluate=None, ckpt_path=None, fraction=1.0, **options):
    trainer = FederatedTrainer(
        max_rounds=rounds,
        strategy=ExactFedAvg(fraction_evaluate=fraction),
        seed=3,
        enable_progress_bar=False,
        **options,
    )
    trainer.fit(model, LocalGrid(client, CLIENTS), evaluate=evaluate, ckpt_path=ckpt_path)
    assert not [record.rejected for record in trainer.rounds if record.rejected], trainer.rounds
    return trainer


def lived_on(start, local):
    """The same federation by hand: modules that live on, and a mean weighted by examples, in float64.

    Args:
        start: The server's module, whose weights all start from.
        local: Each client's own module; what does not travel stays in it.

    Returns:
        The global weights after the last round, and the pooled loss of each round.
    """
    travels = [name for name in start.state_dict() if not name.startswith(("bn.", "head."))]
    weights, losses = {name: start.state_dict()[name].clone() for name in travels}, []
    for _ in range(ROUNDS):
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        counts = [len(rows(client)) for client in range(CLIENTS)]
        for client, module in enumerate(local):
            module.load_state_dict(weights, strict=False)
            module.train()
            optimizer = module.configure_optimizers()
            for batch in DataLoader(rows(client), batch_size=4):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
            for name in travels:
                sums[name] += module.state_dict()[name].double() * counts[client]
        weights = {name: (total / sum(counts)).float() for name, total in sums.items()}
        squares = 0.0
        for client, module in enumerate(local):
            module.load_state_dict(weights, strict=False)
            module.eval()
            x, y = rows(client).tensors
            squares += (module(x) - y).square().sum().item()
        losses.append(squares / sum(counts))
    return weights, losses


def client_of(module):
    return int(module.trainer.callbacks[0].client_id)


LOCAL = WeightExchange(exclude=("bn.*", "head.*"))


def files():
    return [path for path in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if path.is_file()]


def test_local_batch_norm_and_head_are_those_of_clients_that_lived_on():
    built = {}

    class Shows(Net):
        def setup(self, stage):
            built.setdefault(client_of(self), {k: v.clone() for k, v in self.state_dict().items()})

    trainer = federate(client_app(Shows, loader, DEVICE, exchange=LOCAL), exchange=LOCAL)
    start, local = Net(), [Net() for _ in range(CLIENTS)]
    first = federate(client_app(Net, loader, DEVICE, exchange=LOCAL), rounds=0, exchange=LOCAL)
    start.load_state_dict(first.model.state_dict())
    for module, (_, state) in zip(local, sorted(built.items()), strict=True):
        module.load_state_dict(state)
    weights, losses = lived_on(start, local)
    for name, expected in weights.items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=0, atol=1e-6)
    measured = [record.metrics["val_loss"] for record in trainer.rounds]
    np.testing.assert_allclose(measured, losses, rtol=1e-5)
    assert measured == sorted(measured, reverse=True)


class Kills(RoundCallback):
    def on_replies(self, trainer):
        if trainer.current_round == 2:
            raise OSError("power")


def test_they_survive_the_server_and_the_clients_process_state(tmp_path):
    """A new grid after the kill: contexts are gone, as when a SuperNode starts anew."""
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    whole = federate(client, exchange=LOCAL).result
    options = {"exchange": LOCAL, "default_root_dir": tmp_path, "ckpt_path": "last"}
    with pytest.raises(CallbackError, match="power"):
        federate(client, callbacks=[RoundCheckpoint(), Kills()], **options)
    resumed = federate(client, callbacks=[RoundCheckpoint()], **options).result
    assert resumed.digest == whole.digest
    assert [r.metrics["val_loss"] for r in resumed.rounds] == [r.metrics["val_loss"] for r in whole.rounds]


def test_another_run_never_uses_them():
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    assert federate(client, exchange=LOCAL).result.digest == federate(client, exchange=LOCAL).result.digest


def test_they_go_where_the_user_says(tmp_path):
    federate(client_app(Net, loader, DEVICE, exchange=LOCAL, keep_local=tmp_path), rounds=1, exchange=LOCAL)
    assert len(list(tmp_path.glob("*/*/round-00001"))) == CLIENTS
    assert not files()


def test_where_all_weights_travel_nothing_is_written():
    federate(client_app(Net, loader, DEVICE), rounds=2)
    assert not files()


def test_without_keeping_every_message_begins_with_them_as_they_are_built(caplog):
    heads = {client: [] for client in range(CLIENTS)}

    class Shows(Net):
        def on_train_start(self):
            heads[client_of(self)].append(self.head.weight.detach().clone())

    client = client_app(Shows, loader, DEVICE, exchange=LOCAL, keep_local=False)
    federate(client, exchange=LOCAL, rounds=2, fraction=0.0)
    for first, second in heads.values():
        assert torch.equal(first, second)
    assert not files()
    assert not [record for record in caplog.records if record.name.startswith("lightning_fl_ext")]


def test_where_they_cannot_be_kept_one_warning_names_them(tmp_path, caplog):
    (tmp_path / "file").touch()
    client = client_app(Net, loader, DEVICE, exchange=LOCAL, keep_local=tmp_path / "file")
    federate(client, exchange=LOCAL, rounds=3)
    said = [r.getMessage() for r in caplog.records if "cannot be kept" in r.getMessage()]
    assert len(said) == 1
    assert "7 entries" in said[0]
    assert "`bn.weight`" in said[0]
    assert "`head.bias`" in said[0]
    assert "keep_local" in said[0]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep_local": 3}, TypeError),
        ({"keep_local": False, "keep_optimizer": True}, ValueError),
        ({"keep_local": "a", "keep_optimizer": "b"}, ValueError),
    ],
)
def test_folders_that_contradict_each_other_are_refused(options, error):
    with pytest.raises(error, match="keep_local"):
        client_app(Net, loader, **options)


# What is frozen


class Adapted(Net):
    """A frozen body, drawn at random where the module is built, and a small part that is trained."""

    def __init__(self):
        super().__init__()
        self.body.requires_grad_(False)
        self.bn = nn.Identity()


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


class Tied(Net):
    """The head's weight under a second name, as an output layer that shares the embedding."""

    def __init__(self):
        super().__init__()
        self.bn = nn.LayerNorm(4)
        self.out = nn.Linear(4, 1)
        self.out.weight = self.head.weight

    def forward(self, x):
        return super().forward(x) + self.out(self.body(x).tanh())


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


# What is said


def test_a_hand_written_client_hears_once_what_is_trained_and_lost(caplog):
    class Untested(Net):
        validation_step = L.LightningModule.validation_step

    app = ClientApp()

    @app.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context, exchange=LOCAL)
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        L.Trainer(max_epochs=1, callbacks=[bridge], **DEVICE, **quiet).fit(Untested(), loader(context))
        return bridge.reply()

    @app.query()
    def query(message, context):
        return client_app(Net, loader)(message, context)

    with caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        federate(app, exchange=LOCAL, fraction=0)
    said = [r.getMessage() for r in caplog.records if "neither travel" in r.getMessage()]
    assert len(said) == 1
    assert "4 trainable parameter(s)" in said[0]
    assert "head.weight" in said[0]


def test_the_server_says_once_that_it_judges_what_it_never_receives(caplog):
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    federate(client, exchange=LOCAL, evaluate=lambda module: {"norm": module.head.weight.norm()})
    said = [r.getMessage() for r in caplog.records if "`evaluate` judges" in r.getMessage()]
    assert len(said) == 1
    assert "6 entries" in said[0]
    assert "bn.running_mean" in said[0]
    assert "head.weight" in said[0]


def test_it_says_nothing_of_what_is_frozen_or_tied(caplog):
    frozen = WeightExchange(include="head.*")
    tied = WeightExchange(exclude="out.weight")
    for model, exchange in ((Adapted, frozen), (Tied, tied), (Net, WeightExchange())):
        client = client_app(model, loader, DEVICE, exchange=exchange)
        federate(client, model, rounds=1, exchange=exchange, evaluate=lambda module: {"one": 1.0})
    assert "`evaluate` judges" not in caplog.text
