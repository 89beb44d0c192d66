"""One table of what a client may reply, against every strategy, option and kind of message."""

import math

import numpy as np
import pytest
import torch
from _hostile import is_evaluation
from _hostile_replies import ARRAYS, BAD, COUNTS, COUNTS_ALL_THE_SAME, LEFT_OUT, SENT
from _toy import local_fit
from flwr.app import MetricRecord
from lightning.pytorch.loggers import CSVLogger
from torchmetrics import MeanMetric

from lightning_fl_ext import (
    CoordinateMedian,
    ExactFedAvg,
    FedDyn,
    FederatedTrainer,
    FedNova,
    FedProx,
    RobustFedAvg,
    RoundCheckpoint,
    RoundLedger,
    Scaffold,
    verify_ledger,
)
from lightning_fl_ext.server import Reason

ALL = list(SENT)
FEW = [*ARRAYS, *COUNTS, *COUNTS_ALL_THE_SAME]  # which a strategy might see something of
APART = {"Bulyan", "RobustFedAvg"}  # seconds a round, all of them Flower's; and a rule for no fewer than five
OWN = {
    "ExactFedAvg": ExactFedAvg,
    "CoordinateMedian": lambda: RobustFedAvg(CoordinateMedian()),
    "FedProx (exact)": lambda: FedProx(0.1),
    "Scaffold": Scaffold,
    "FedNova": FedNova,
    "FedDyn": lambda: FedDyn(0.1),
}


class Net(torch.nn.Module):
    """The toy's, with a metric."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, -1))
        self.bias = torch.nn.Parameter(torch.tensor([0.25, -0.5]))
        self.acc = MeanMetric()


def answering(strategy):
    """What the toy's clients make of arrays, with what an algorithm expects of them."""

    def fit(arrays, partition, server_round):
        weights = {name: array for name, array in arrays.items() if not name.startswith("algorithm/")}
        weights = local_fit(weights, partition, server_round)
        expected = strategy.expected(weights) if hasattr(strategy, "expected") else {}
        return {**weights, **{f"algorithm/{name}": np.ones_like(array) for name, array in expected.items()}}

    return fit


def run(toy, strategy, cases, lost=False, **options):
    """A run in whose round i client `BAD` sends case i, in every reply; or nothing of what is left out."""

    def faults(instruction, reply):
        if instruction.metadata.message_type == "query" or toy.client_of(reply) != BAD:
            return reply
        case = cases[int(instruction.content["config"]["server-round"]) - 1]
        of_phase = LEFT_OUT[case][2 if is_evaluation(instruction) else 1] if case in LEFT_OUT else None
        return None if lost and of_phase else SENT[case](toy, reply)

    trainer = toy.make_trainer(strategy, max_rounds=len(cases), **options)
    adapts = type(strategy).__name__ == "DifferentialPrivacyClientSideAdaptiveClipping"
    app = toy.make_app(fit=answering(strategy), extra={"norm_bit": 1} if adapts else None)
    return trainer.fit(Net(), toy.make_grid(5, app, faults=faults))


def expected_of(case):
    if case not in LEFT_OUT:
        return {}
    _, train, evaluate = LEFT_OUT[case]
    told = {("train", train), ("evaluate", evaluate)}
    return {(phase, reason) for phase, reason in told if reason is not None}


def check(case, record):
    assert {r.client_id for r in record.rejected} <= {BAD}, case
    assert (BAD in record.accepted) == (case not in LEFT_OUT or LEFT_OUT[case][1] is None), case
    assert len(record.accepted) >= 4, case
    for name in ("train_loss", "val_loss"):
        assert math.isfinite(record.metrics[name]), (case, name)
    assert record.metrics["clients_accepted"] == len(record.accepted)
    if case in LEFT_OUT:
        assert {(r.phase, r.reason) for r in record.rejected} == expected_of(case), case
    else:
        assert {r.reason for r in record.rejected} <= {Reason.METRIC}, case


def test_what_most_tell_and_what_the_table_holds():
    assert len(LEFT_OUT) > 60
    assert len(COUNTS_ALL_THE_SAME) > 10


@pytest.mark.parametrize("name", OWN)
def test_whatever_one_client_replies_it_is_named_and_the_run_goes_on(toy, name):
    result = run(toy, OWN[name](), ALL)
    for case, record in zip(ALL, result.rounds, strict=True):
        check(case, record)


def test_so_it_is_under_every_strategy_of_flower_s(toy, make_strategy, strategy_name):
    if strategy_name in APART | {*OWN}:
        pytest.skip("apart, or tried above")
    strategy = make_strategy(strategy_name)
    if strategy_name in ("QFedAvg", "DPClientAdaptive"):  # who does not tell what they need is left out
        result = run(toy, strategy, [*ARRAYS, *COUNTS])
        assert all(record.accepted >= ("00", "01", "03", "04") for record in result.rounds)
        return
    result = run(toy, strategy, FEW)
    for case, record in zip(FEW, result.rounds, strict=True):
        check(case, record)


@pytest.mark.parametrize("name", ["ExactFedAvg", "CoordinateMedian", "Scaffold"])
def test_the_model_is_what_it_would_be_without_the_reply(toy, name):
    cases = list(LEFT_OUT)
    assert run(toy, OWN[name](), cases).digest == run(toy, OWN[name](), cases, lost=True).digest


def test_so_it_is_with_every_option_on(toy, tmp_path):
    options = {
        "site_metrics": {"val_loss": "min"},
        "average_metrics": ("acc",),
        "train_config": {"lr": 0.1},
        "monitor": "val_loss/worst",
        "max_update_norm": 100.0,
        "callbacks": [RoundCheckpoint(), RoundLedger()],
        "logger": CSVLogger(tmp_path / "logs"),
        "default_root_dir": tmp_path,
    }
    cases = ["a list for a number", "no metrics but the count", *ALL]
    result = run(toy, ExactFedAvg(), cases, **options)
    for case, record in zip(cases, result.rounds, strict=True):
        check(case, record)
        honest = [site.metrics["val_loss"] for client, site in record.sites.items() if client != BAD]
        assert len(honest) == 4
        assert record.metrics["val_loss/best"] <= min(honest) <= record.metrics["val_loss/worst"], case
    assert verify_ledger(tmp_path).ok
    assert (tmp_path / "ledger.jsonl").stat().st_size < 2**21


@pytest.mark.parametrize("case", SENT)
def test_so_it_is_with_replies_to_a_test_of_the_final_model(toy, case):
    def faults(instruction, reply):
        if instruction.metadata.message_type == "query" or toy.client_of(reply) != BAD:
            return reply
        return SENT[case](toy, reply)

    trainer = FederatedTrainer(strategy=ExactFedAvg(fraction_evaluate=0.0), enable_progress_bar=False, seed=7)
    measured = trainer.test(Net(), toy.make_grid(5, faults=faults))
    record = trainer.rounds[0]
    assert math.isfinite(measured["val_loss"])
    assert {r.client_id for r in record.rejected} <= {BAD}
    reason = LEFT_OUT[case][2] if case in LEFT_OUT else None
    if reason is None:
        assert {r.reason for r in record.rejected} <= {Reason.METRIC}
    else:
        assert (BAD in record.sites, {r.reason for r in record.rejected}) == (False, {reason})
    assert {*record.sites} >= {"00", "01", "03", "04"}


# A client cannot take a metric from the others


@pytest.mark.parametrize("case", ["a list for a number", "no metrics but the count"])
@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg", "FedMedian"])
def test_a_metrics_function_of_the_users_sees_who_reports_what_most_do(toy, make_strategy, name, case):
    seen = []

    def mine(contents, key):
        numbers = [content["metrics"] for content in contents]
        name = "train_loss" if "train_loss" in numbers[0] else "val_loss"
        seen.append([(number[key], number[name]) for number in numbers])
        return type(numbers[0])({"mine": sum(n * value for n, value in seen[-1])})

    strategy = make_strategy(name)
    strategy.train_metrics_aggr_fn = strategy.evaluate_metrics_aggr_fn = mine
    result = run(toy, strategy, [case])
    assert [len(numbers) for numbers in seen] == [4, 4]
    assert {n for n, _ in seen[0]} == {toy.examples(i) for i in (0, 1, 3, 4)}
    assert result.rounds[0].metrics["mine"] == pytest.approx(sum(n * value for n, value in seen[1]))
    assert {(r.client_id, r.reason) for r in result.rejected} == {(BAD, Reason.METRIC)}
    assert strategy.train_metrics_aggr_fn is mine


@pytest.mark.parametrize("value", [None, [0.5], -5.0, 1e13])
@pytest.mark.parametrize(("name", "key"), [("QFedAvg", "train_loss"), ("DPClientAdaptive", "norm_bit")])
def test_a_client_without_the_number_that_a_strategy_computes_with_is_left_out(
    toy, make_strategy, name, key, value
):
    def faults(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == BAD:
            told = {"num-examples": 5} | ({} if value is None else {key: value})
            reply.content["metrics"] = MetricRecord(told)
        return reply

    app = toy.make_app(extra={"norm_bit": 1})
    trainer = toy.make_trainer(make_strategy(name), max_rounds=1)
    rejected = trainer.fit(toy.Net(), toy.make_grid(5, app, faults=faults)).rejected
    (rejection,) = [r for r in rejected if r.reason is not Reason.METRIC]
    assert (rejection.client_id, rejection.key) == (BAD, key)
    assert rejection.reason is (Reason.MAGNITUDE if isinstance(value, float) else Reason.KEYS)
