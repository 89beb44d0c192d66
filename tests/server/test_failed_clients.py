"""Clients whose own code fails: named by their id and with their own line, each once."""

import logging
import re

import lightning.pytorch as L
import pytest
import torch
from _modules import QUIET, Lit
from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LightningFLError,
    LocalGrid,
    RoundCallback,
    client_app,
)
from lightning_fl_ext.server.screening.rejection import Reason


def data(context):
    site = int(context.node_config["partition-id"])
    if site == 2:
        raise KeyError("age")
    x = torch.zeros(8, 4 if site == 1 else 3)
    return DataLoader(TensorDataset(x, torch.zeros(8, 1)), batch_size=4)


class Net(Lit):
    def forward(self, x):
        return self.layer(x)

    def loss(self, batch):
        return self(batch[0]).square().mean()


def by_hand():
    """Three lines, and no answer to a query."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context)
        with bridge.seeded():
            L.Trainer(max_epochs=1, callbacks=[bridge], **QUIET).fit(Net(), data(context))
        return bridge.reply()

    return app


APPS = {"client_app": lambda: client_app(Net, data, QUIET), "by hand": by_hand}


def as_flower_sends(instruction, reply):
    """Type and message alone."""
    if not reply.has_error():
        return reply
    name, _, words = reply.error.reason.strip().splitlines()[-1].partition(": ")
    return Message(Error(reply.error.code, f"<class '{name}'>:<'{words}'>"), reply_to=instruction)


def make_trainer(tmp_path, **options):
    return FederatedTrainer(
        **{
            "max_rounds": 1,
            "strategy": ExactFedAvg(fraction_evaluate=0.0),
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
            **options,
        }
    )


@pytest.mark.parametrize("faults", [None, as_flower_sends], ids=["traceback", "type and message"])
@pytest.mark.parametrize("kind", APPS)
def test_each_is_named_once_by_id_with_its_type_and_own_line(tmp_path, caplog, kind, faults):
    trainer = make_trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        trainer.fit(Net, LocalGrid(APPS[kind](), 4, faults=faults))
    got = {r.client_id: r.got for r in trainer.rounds[-1].rejected if r.reason is Reason.CLIENT_ERROR}
    assert sorted(got) == ["1", "2"]
    assert re.fullmatch(r"RuntimeError: mat1 and mat2 .* \(test_failed_clients\.py:\d+\)", got["1"])
    assert re.fullmatch(r"KeyError: 'age' \(test_failed_clients\.py:\d+\)", got["2"])
    assert trainer.rounds[-1].accepted == ("0", "3")
    assert [caplog.text.count(words) for words in ("mat1", "age'")] == [1, 1]


def test_another_clients_name_in_an_error_changes_nothing_for_a_client_that_is_known(tmp_path):
    def fails(context):
        site = context.node_config["partition-id"]
        if site == 1:
            raise ValueError("one (ValueError at lit.py:7; client `0`)")
        return data(context) if site != 2 else data(context.__class__(1, 1, {"partition-id": 3}, {}, {}))

    trainer = make_trainer(tmp_path, max_rounds=2)
    trainer.fit(Net, LocalGrid(client_app(Net, fails, QUIET), 4))
    assert [record.accepted for record in trainer.rounds] == [("0", "2", "3")] * 2
    assert {r.client_id for r in trainer.rounds[-1].rejected} == {"1"}


def test_the_end_of_a_long_message_is_kept_up_to_a_bound(tmp_path):
    def fails(context):
        if context.node_config["partition-id"] == 1:
            raise ValueError("x" * 900 + " what to do")
        if context.node_config["partition-id"] == 2:
            raise ValueError("x" * 9000)
        return data(context)

    trainer = make_trainer(tmp_path)
    trainer.fit(Net, LocalGrid(client_app(Net, fails, QUIET), 4))
    first, second = (r.got for r in trainer.rounds[-1].rejected)
    assert re.search(r" what to do \(test_failed_clients\.py:\d+\)$", first)
    assert re.search(r"x… \(test_failed_clients\.py:\d+\)$", second)
    assert len(second) <= 1000


def evaluate(module):
    return module(torch.zeros(2, 7))


class Breaks(RoundCallback):
    def on_round_start(self, trainer):
        evaluate(trainer.model)


class Writes(CSVLogger):
    def log_metrics(self, metrics, step=None):
        torch.zeros(2) + torch.zeros(3)


@pytest.mark.parametrize(
    ("options", "central", "said"),
    [
        ({}, evaluate, "`evaluate` failed after round 0: RuntimeError: mat1"),
        ({"callbacks": Breaks()}, None, "Breaks.on_round_start raised in round 1: RuntimeError: mat1"),
        ({"logger": Writes(".")}, None, "logger Writes raised in round 1: RuntimeError: The size of tensor"),
    ],
    ids=["evaluate", "callback", "logger"],
)
def test_the_servers_own_code_is_told_with_its_line(tmp_path, options, central, said):
    with pytest.raises(LightningFLError, match=rf"{said}.* \(test_failed_clients\.py:\d+\)"):
        make_trainer(tmp_path, **options).fit(Net, LocalGrid(client_app(Net, data, QUIET), 4), central)
