"""Evaluation on the server and on the clients, and its metrics in a fit."""

import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_fl_ext import ExactFedAvg, RoundCallback, RoundCheckpoint, RoundEarlyStopping, digest
from lightning_fl_ext.engines import NotEnoughClientsError
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server import CallbackError


def squares(model):
    assert not model.training
    assert not torch.is_grad_enabled()
    return {"squares": float(model.weight.square().sum())}


def test_the_global_model_is_evaluated_before_the_first_round_and_after_each(toy):
    result = toy.make_trainer().fit(toy.Net(), toy.make_grid(2), evaluate=squares)
    assert [record.server_round for record in result.rounds] == [0, 1, 2]
    final = float(result.model.weight.detach().square().sum())
    assert result.rounds[-1].metrics["server_squares"] == pytest.approx(final)
    assert result.rounds[0].metrics["server_squares"] == pytest.approx(
        float(toy.Net().weight.detach().square().sum())
    )


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))

    def validation_step(self, batch, _):
        self.log("val_loss", (batch * self.weight).mean())


class Data(L.LightningDataModule):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.arange(4.0), batch_size=2)


@pytest.mark.parametrize("data", [Data(), Data().val_dataloader()], ids=["DataModule", "DataLoader"])
def test_central_evaluation_takes_data_for_a_trainer(toy, data):
    result = toy.make_trainer(max_rounds=1).fit(Lit(), toy.make_grid(2), evaluate=data)
    expected = 1.5 * float(result.model.weight.detach())
    assert result.rounds[0].metrics["server_val_loss"] == pytest.approx(3.0)
    assert result.rounds[1].metrics["server_val_loss"] == pytest.approx(expected)
    assert result.model.training


def test_validate_evaluates_on_the_clients_and_on_the_server(toy):
    trainer = toy.make_trainer()
    metrics = trainer.validate(toy.Net(), toy.make_grid(3), evaluate=squares)
    loss = float(toy.Net().weight.detach().double().square().sum())
    weights = np.array([1, 2, 3]) / 6
    assert metrics == pytest.approx(
        {"val_loss": float((weights * (loss + np.array([0, 0.1, 0.2]))).sum()), "server_squares": loss},
        rel=1e-6,
    )
    assert trainer.rounds[0].digest == digest({k: t.numpy() for k, t in toy.Net().state_dict().items()})


EVALUATIONS = {
    "raises": (lambda model: 1 / 0, "ZeroDivisionError: division by zero"),
    "no mapping": (lambda model: 0.5, "it must return a mapping from names to numbers. Got 0.5"),
    "nothing": (lambda model: None, "Got None"),
    "word": (lambda model: {"loss": "low"}, "it must return a number for `loss`. Got 'low'"),
    "several numbers": (
        lambda model: {"loss": torch.ones(3)},
        "number for `loss`. Got an instance of Tensor",
    ),
    "nested": (lambda model: {"a": {"b": 1.0}}, "it must return a number for `a`. Got an instance of dict"),
}


@pytest.mark.parametrize("case", sorted(EVALUATIONS))
def test_an_evaluation_that_fails_is_named_with_the_round(toy, case):
    function, says = EVALUATIONS[case]
    wrong = iter([False, True])
    with pytest.raises(LightningFLError, match=f"`evaluate` failed after round 1: .*{re.escape(says)}"):
        toy.make_trainer().fit(
            toy.Net(), toy.make_grid(2), evaluate=lambda m: function(m) if next(wrong) else {}
        )


def test_what_can_evaluate_no_module_is_refused_before_the_first_round(toy):
    with pytest.raises(TypeError, match=r"Got the class Data: write `Data\(...\)`"):
        toy.make_trainer().fit(Lit(), toy.make_grid(2), evaluate=Data)
    with pytest.raises(TypeError, match=r"LightningModule only; `model` is an instance of Net"):
        toy.make_trainer().fit(toy.Net(), toy.make_grid(2), evaluate=Data())
    with pytest.raises(TypeError, match=r"`evaluate` must be a function of the module.* Got True"):
        toy.make_trainer().validate(toy.Net(), toy.make_grid(2), evaluate=True)


def test_numbers_of_every_kind_are_taken_from_an_evaluation(toy):
    def evaluate(model):
        return {"t": torch.tensor(1.5), "n": np.float32(2.5), "i": 3, "w": model.weight.sum()}

    metrics = toy.make_trainer().validate(toy.Net(), toy.make_grid(2), evaluate)
    assert (metrics["server_t"], metrics["server_n"], metrics["server_i"]) == (1.5, 2.5, 3.0)
    assert all(type(value) is float for value in metrics.values())


def test_validating_nothing_is_pointed_out(toy, caplog):
    trainer = toy.make_trainer(ExactFedAvg(fraction_evaluate=0.0))
    assert trainer.validate(toy.Net(), toy.make_grid(2)) == {}
    assert "nothing was measured: the strategy asks no client to evaluate" in caplog.text


@pytest.mark.parametrize("method", ["log_metrics", "save", "finalize"])
def test_a_logger_that_fails_is_named_with_the_round(toy, tmp_path, method):
    def full(self, *_, **__):
        raise OSError("disk full")

    broken = type("Broken", (CSVLogger,), {method: full})(tmp_path)
    with pytest.raises(LightningFLError, match=r"logger Broken raised in round \d: OSError: disk full"):
        toy.make_trainer(logger=broken).fit(toy.Net(), toy.make_grid(2))


def test_a_logger_that_cannot_be_closed_does_not_hide_why(toy, tmp_path, caplog):
    class Broken(CSVLogger):
        def finalize(self, status):
            raise OSError(status)

    class Failing(RoundCallback):
        def on_round_end(self, trainer):
            raise KeyError("first")

    trainer = toy.make_trainer(logger=Broken(tmp_path), callbacks=Failing())
    with pytest.raises(CallbackError, match="first"):
        trainer.fit(toy.Net(), toy.make_grid(2))
    assert "Broken.finalize raised as well" in caplog.text


def test_validate_says_when_there_are_too_few_clients(toy):
    with pytest.raises(NotEnoughClientsError, match=r"1 client.*At least 2"):
        toy.make_trainer().validate(toy.Net(), toy.make_grid(1))


def test_train_and_evaluate_metrics_of_one_name_are_both_kept(toy):
    app = toy.make_app(metrics=lambda partition, _: {"val_loss": 5.0})
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(2, app))
    assert result.metrics["fit_val_loss"] == pytest.approx(5.0)
    assert result.metrics["val_loss"] != pytest.approx(5.0)


def no_evaluations_in(toy, *rounds):
    def faults(instruction, reply):
        asked = instruction.metadata.message_type == "evaluate"
        return None if asked and instruction.content["config"]["server-round"] in rounds else reply

    return faults


def test_a_metric_keeps_its_name_in_a_round_whose_evaluations_are_missing(toy, tmp_path):
    def fit(rounds, **options):
        app = toy.make_app(metrics=lambda partition, _: {"val_loss": 5.0})
        grid = toy.make_grid(3, app, faults=no_evaluations_in(toy, 2))
        options = {"callbacks": RoundCheckpoint(), "default_root_dir": tmp_path, **options}
        return toy.make_trainer(max_rounds=rounds, **options).fit(toy.Net(), grid, ckpt_path="last")

    fit(1)
    for result in (fit(2), fit(3)):
        assert all(record.metrics["fit_val_loss"] == pytest.approx(5.0) for record in result.rounds)
        assert ["val_loss" in record.metrics for record in result.rounds] == [True, False, True][
            : len(result.rounds)
        ]


def test_a_monitored_metric_may_be_missing_in_a_round_though_not_in_all(toy, tmp_path):
    checkpoint = RoundCheckpoint(monitor="val_loss", keep_last=None)
    callbacks = [RoundEarlyStopping("val_loss", patience=3), checkpoint]
    trainer = toy.make_trainer(callbacks=callbacks, max_rounds=4, default_root_dir=tmp_path)
    result = trainer.fit(toy.Net(), toy.make_grid(3, faults=no_evaluations_in(toy, 2)))
    losses = {r.server_round: r.metrics["val_loss"] for r in result.rounds if "val_loss" in r.metrics}
    assert sorted(losses) == [1, 3, 4]
    assert checkpoint.best_path.name == f"round-{min(losses, key=losses.get):05d}"


def test_the_bytes_of_evaluations_are_counted_beside_those_of_training(toy):
    def fit(share):
        trainer = toy.make_trainer(ExactFedAvg(fraction_evaluate=share))
        return [record.metrics for record in trainer.fit(toy.Net(), toy.make_grid(4)).rounds]

    for all_of_them, half in zip(fit(1.0), fit(0.5), strict=True):
        assert all_of_them["bytes_evaluate"] == all_of_them["bytes_down"] == 2 * half["bytes_evaluate"] > 0
        assert all_of_them["bytes_down"] == half["bytes_down"]
    assert all("bytes_evaluate" not in metrics for metrics in fit(0.0))
