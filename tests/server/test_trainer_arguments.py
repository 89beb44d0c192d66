"""Wrong arguments: each is named, with what came instead and what to write."""

import re
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.strategy import FedAvg
from lightning.pytorch.loggers import CSVLogger

from lightning_fl_ext import (
    FederatedTrainer,
    RoundCallback,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundLedger,
    RoundProgressBar,
    WeightExchange,
    server_app,
)

WRONG = [
    ({"max_rounds": -1}, ValueError, "`max_rounds` must be at least 0. Got -1."),
    ({"max_rounds": 2.5}, TypeError, "`max_rounds` must be a whole number. Got 2.5."),
    ({"max_rounds": None}, TypeError, "`max_rounds` must be a whole number. Got None."),
    ({"seed": -1}, ValueError, "`seed` must be at least 0."),
    ({"seed": "7"}, TypeError, "`seed` must be a whole number. Got '7'."),
    ({"min_accepted": 0}, ValueError, "`min_accepted` must be at least 1."),
    ({"on_bad_update": "ignore"}, ValueError, "`on_bad_update` must be 'exclude' or 'raise'. Got 'ignore'."),
    ({"max_update_norm": 0}, ValueError, "`max_update_norm` must be > 0, or None for no limit. Got 0."),
    ({"max_update_norm": float("nan")}, ValueError, "`max_update_norm` must be > 0"),
    ({"max_update_norm": "3"}, TypeError, "`max_update_norm` must be a number"),
    ({"round_timeout": -1}, ValueError, "`round_timeout` must be >= 0, or None for no limit. Got -1."),
    ({"round_timeout": [3]}, TypeError, "`round_timeout` must be a number"),
    ({"default_root_dir": None}, TypeError, "`default_root_dir` must be the path of a folder. Got None."),
    ({"strategy": FedAvg}, TypeError, "ExactFedAvg`. Got the class FedAvg: write `FedAvg(...)`."),
    ({"strategy": LegacyFedAvg()}, TypeError, "a strategy of `flwr.serverapp.strategy`"),
    ({"strategy": "fedavg"}, TypeError, "Got 'fedavg'."),
    ({"exchange": WeightExchange}, TypeError, "`exchange` must be a WeightExchange or a MaskExchange."),
    ({"callbacks": RoundLedger}, TypeError, "Got the class RoundLedger: write `RoundLedger(...)`."),
    ({"callbacks": [RoundCheckpoint]}, TypeError, "`callbacks` must be RoundCallback objects."),
    ({"callbacks": [None]}, TypeError, "Got None."),
    ({"callbacks": L.Callback()}, TypeError, "belong to the clients: `client_app("),
    ({"callbacks": [RoundCheckpoint(), RoundCheckpoint()]}, ValueError, "holds 2 RoundCheckpoint"),
    ({"callbacks": [RoundLedger(), RoundLedger()]}, ValueError, "holds 2 RoundLedger"),
    ({"callbacks": [RoundProgressBar(), RoundProgressBar()]}, ValueError, "holds 2 RoundProgressBar"),
    (
        {"callbacks": RoundProgressBar(), "enable_progress_bar": False},
        ValueError,
        "`callbacks` holds a RoundProgressBar, and `enable_progress_bar` is False",
    ),
    ({"logger": True}, TypeError, "such as `CSVLogger('runs')`, or None for none. Got True."),
    ({"logger": CSVLogger}, TypeError, "Got the class CSVLogger: write `CSVLogger(...)`."),
    ({"logger": ["csv"]}, TypeError, "Got 'csv'."),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "says"), WRONG, ids=[f"{next(iter(w))}-{i}" for i, (w, _, _) in enumerate(WRONG)]
)
def test_an_argument_of_the_trainer_is_named_with_what_came(wrong, kind, says):
    with pytest.raises(kind, match=re.escape(says)):
        FederatedTrainer(**wrong)


def test_what_means_the_same_is_taken(tmp_path):
    logger = CSVLogger(tmp_path)
    assert FederatedTrainer(logger=False).loggers == FederatedTrainer(logger=[]).loggers == []
    assert FederatedTrainer(logger=logger).loggers == FederatedTrainer(logger=(logger,)).loggers == [logger]
    callback = RoundCallback()
    off = {"enable_progress_bar": False}
    assert FederatedTrainer(callbacks=callback, **off).callbacks == [callback]
    assert FederatedTrainer(callbacks=iter([callback]), **off).callbacks == [callback]
    assert FederatedTrainer(max_rounds=np.int64(3), max_update_norm=np.float32(2)).max_rounds == 3


def needs_width(width):
    return torch.nn.Linear(width, 1)


MODELS = [
    (None, TypeError, "`model` must be a torch module, its class, or a function"),
    (torch.nn.Linear(2, 1).state_dict(), TypeError, "Got an instance of OrderedDict."),
    (lambda: None, TypeError, "It made None."),
    (
        torch.nn.LazyLinear(3),
        ValueError,
        "no shapes yet for ['weight', 'bias']: run a batch",
    ),
]


@pytest.mark.parametrize(("model", "kind", "says"), MODELS, ids=["None", "state dict", "made None", "lazy"])
def test_what_is_no_model_is_named(toy, model, kind, says):
    with pytest.raises(kind, match=re.escape(says)):
        toy.make_trainer().fit(model, toy.make_grid(2))


def test_a_model_that_takes_arguments_is_asked_for_as_an_object(toy):
    with pytest.raises(TypeError, match="width") as refused:
        toy.make_trainer().fit(needs_width, toy.make_grid(2))
    assert refused.value.__notes__ == [
        "`model` is called without arguments: give an object, or `lambda: Lit(...)`."
    ]


def test_what_is_no_grid_is_named(toy):
    with pytest.raises(TypeError, match=r"Got an instance of ClientApp. Put it into one: `LocalGrid\(client"):
        toy.make_trainer().fit(toy.Net, toy.make_app())
    with pytest.raises(TypeError, match=r"`grid` must be a Flower Grid. Got None"):
        toy.make_trainer().validate(toy.Net, None)


def test_an_engine_that_lacks_a_method_is_told_which(toy):
    methods = dict.fromkeys(("get_node_ids", "push_messages", "pull_messages"), print)
    with pytest.raises(TypeError, match=r"It has no `get_nodes`: derive it from `flwr.serverapp.Grid`."):
        toy.make_trainer().fit(toy.Net, SimpleNamespace(**methods))


def test_a_server_app_is_made_around_a_federated_trainer_only(toy):
    with pytest.raises(TypeError, match=r"Got the class FederatedTrainer: write `FederatedTrainer\(...\)`"):
        server_app(toy.Net, FederatedTrainer)
    with pytest.raises(TypeError, match=r"`trainer` must be a FederatedTrainer. Got an instance of FedAvg"):
        server_app(toy.Net, FedAvg())


CALLBACKS = [
    (RoundCheckpoint, {"keep_last": 0}, ValueError, "`keep_last` must be at least 1. Got 0."),
    (RoundCheckpoint, {"keep_last": 1.5}, TypeError, "`keep_last` must be a whole number"),
    (RoundCheckpoint, {"mode": "lower"}, ValueError, "`mode` must be 'min' or 'max'. Got 'lower'."),
    (RoundCheckpoint, {"monitor": 3}, TypeError, "`monitor` must be the name of a metric. Got 3."),
    (RoundEarlyStopping, {"monitor": 3}, TypeError, "`monitor` must be the name of a metric"),
    (RoundEarlyStopping, {"monitor": "loss", "mode": "least"}, ValueError, "`mode`"),
    (RoundEarlyStopping, {"monitor": "loss", "patience": 0}, ValueError, "`patience` must be at least 1"),
    (RoundEarlyStopping, {"monitor": "loss", "patience": 1.5}, TypeError, "`patience`"),
    (RoundEarlyStopping, {"monitor": "loss", "min_delta": -1}, ValueError, "`min_delta` must be >= 0"),
    (RoundProgressBar, {"metrics": "val_loss"}, TypeError, "`metrics` must be several names. Got 'val_loss'"),
]


@pytest.mark.parametrize(("callback", "wrong", "kind", "says"), CALLBACKS)
def test_an_argument_of_a_callback_is_named(callback, wrong, kind, says):
    with pytest.raises(kind, match=re.escape(says)):
        callback(**wrong)
