"""What is left out, and that leaving it out is all that happens."""

import copy
import math
import re

import numpy as np
import pytest
from _altering import BAD, altering
from _bad_updates import STREAMED_AND_COLLECTED, arrays, config, fit, metric, put
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from lightning_fl_ext import LocalGrid
from lightning_fl_ext.aggregation.structure import MAX_WEIGHT
from lightning_fl_ext.server import Reason
from lightning_fl_ext.server.metrics.aggregation import common_metrics


def content(key, record):
    def alter(toy, reply):
        reply.content[key] = copy.deepcopy(record)
        return reply

    return alter


def payload(change):
    def alter(toy, reply):
        packed = reply.content["arrays"]["weight"]
        change(packed)
        return reply

    return alter


def drop(toy, reply):
    return None


def missing(named):
    del named["bias"]


def without_arrays(toy, reply):
    del reply.content["arrays"]
    return reply


ROWS = {
    "no reply": (drop, Reason.NO_REPLY, ""),
    "missing key": (arrays(missing), Reason.KEYS, "bias"),
    "extra key": (arrays(lambda named: {**named, "more": np.ones(1)}), Reason.KEYS, "more"),
    "wrong keys": (arrays(lambda named: {"a": named["weight"], "b": named["bias"]}), Reason.KEYS, "weight"),
    "prefixed keys": (
        arrays(lambda named: {f"model.{key}": array for key, array in named.items()}),
        Reason.PREFIX,
        "model.weight",
    ),
    "no arrays": (without_arrays, Reason.UNDECODABLE, "arrays"),
    "two array records": (content("more", ArrayRecord()), Reason.UNDECODABLE, "arrays"),
    "shape": (arrays(lambda named: {**named, "bias": np.ones(3, np.float32)}), Reason.SHAPE, "bias"),
    "shape that would broadcast": (
        arrays(lambda named: {**named, "bias": np.ones(1, np.float32)}),
        Reason.SHAPE,
        "bias",
    ),
    "announced shape": (
        payload(lambda packed: setattr(packed, "shape", (3, 2))),
        Reason.SHAPE,
        "weight",
    ),
    "transposed": (arrays(lambda named: {**named, "weight": named["weight"].T}), Reason.SHAPE, "weight"),
    "dtype": (
        arrays(lambda named: {**named, "bias": named["bias"].astype(np.float64)}),
        Reason.DTYPE,
        "bias",
    ),
    "NaN in an array": (put("weight", (1, 2), np.nan), Reason.NOT_FINITE, "weight"),
    "inf in an array": (put("bias", 0, -np.inf), Reason.NOT_FINITE, "bias"),
    "NaN in a metric": (metric("train_loss", math.nan), Reason.NOT_FINITE, "train_loss"),
    "inf in a list of metrics": (metric("train_loss", [1.0, math.inf]), Reason.NOT_FINITE, "train_loss"),
    "a metric that no float can hold": (metric("train_loss", 10**400), Reason.MAGNITUDE, "train_loss"),
    "norm over the limit": (put("weight", (0, 0), 60.0), Reason.NORM, ""),
    "no examples": (metric("num-examples", 0), Reason.IDLE, ""),
    "count negative": (metric("num-examples", -3), Reason.COUNT, "num-examples"),
    "count fractional": (metric("num-examples", 2.5), Reason.COUNT, "num-examples"),
    "count NaN": (metric("num-examples", math.nan), Reason.COUNT, "num-examples"),
    "count inf": (metric("num-examples", math.inf), Reason.COUNT, "num-examples"),
    "count huge": (metric("num-examples", MAX_WEIGHT + 1), Reason.COUNT, "num-examples"),
    "count missing": (metric("num-examples", None), Reason.COUNT, "num-examples"),
    "count a list": (metric("num-examples", [3]), Reason.COUNT, "num-examples"),
    "no metrics": (content("metrics", ConfigRecord()), Reason.UNDECODABLE, "metrics"),
    "two metric records": (content("more", MetricRecord()), Reason.UNDECODABLE, "metrics"),
    "another round": (config("server-round", 7), Reason.STALE, "server-round"),
    "another client": (config("client-id", "04"), Reason.NOT_SAMPLED, "client-id"),
    "cut payload": (
        payload(lambda packed: setattr(packed, "data", packed.data[:-1])),
        Reason.UNDECODABLE,
        "arrays",
    ),
    "no payload": (payload(lambda packed: setattr(packed, "data", b"")), Reason.UNDECODABLE, "arrays"),
    "pickled payload": (
        payload(lambda packed: setattr(packed, "data", b"\x80\x04N.")),
        Reason.UNDECODABLE,
        "arrays",
    ),
    "unknown payload": (
        payload(lambda packed: setattr(packed, "stype", "zip")),
        Reason.UNDECODABLE,
        "arrays",
    ),
    "larger than the model": (
        payload(lambda packed: setattr(packed, "data", packed.data + bytes(10_000))),
        Reason.TOO_LARGE,
        "weight",
    ),
}


@pytest.fixture(scope="module")
def without(toy):
    """The digest and the metrics without the bad client's replies, by strategy."""
    known = {}

    def get(name, strategy):
        if name not in known:
            result = fit(toy, strategy, altering(toy, drop))
            known[name] = result.digest, [record.metrics["train_loss"] for record in result.rounds]
        return known[name]

    return get


@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
@pytest.mark.parametrize("row", sorted(ROWS))
def test_a_bad_update_is_named_and_changes_no_bit_of_the_others_mean(toy, make_strategy, without, name, row):
    alter, reason, key = ROWS[row]
    result = fit(toy, make_strategy(name), altering(toy, alter))
    assert [(r.client_id, r.server_round, r.reason, r.key) for r in result.rejected] == [
        (BAD, 1, reason, key),
        (BAD, 2, reason, key),
    ]
    losses = [record.metrics["train_loss"] for record in result.rounds]
    assert (result.digest, losses) == without(name, make_strategy(name))
    assert all(record.accepted == ("00", "01", "03", "04") for record in result.rounds)
    assert all(record.metrics["clients_rejected"] == 1.0 for record in result.rounds)


def test_every_reason_is_tried_in_a_real_round():
    elsewhere = {Reason.CLIENT_ERROR, Reason.DUPLICATE, Reason.METRIC, Reason.OVER_LIMIT, Reason.NAME}
    elsewhere |= {Reason.MAGNITUDE, Reason.SECURE}
    assert {reason for _, reason, _ in ROWS.values()} | elsewhere == set(Reason)


@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
def test_an_exception_on_a_client_is_its_error(toy, make_strategy, without, name):
    def failing(named, partition, server_round):
        if partition == 2:
            raise ValueError("disk on fire")
        return toy.local_fit(named, partition, server_round)

    result = toy.make_trainer(make_strategy(name)).fit(
        toy.Net(), toy.make_grid(app=toy.make_app(fit=failing))
    )
    assert [(r.client_id, r.reason) for r in result.rejected] == [(BAD, Reason.CLIENT_ERROR)] * 2
    assert all(
        re.fullmatch(r"ValueError: disk on fire \(test_checks.py:\d+\)", r.got) for r in result.rejected
    )
    assert result.digest == without(name, make_strategy(name))[0]


@pytest.mark.parametrize(
    ("code", "text", "reason", "got"),
    [
        (2, "<class 'ValueError'>:<'disk\non fire'>", Reason.CLIENT_ERROR, "ValueError: disk; on fire"),
        (1, "cannot load `ClientApp`", Reason.CLIENT_ERROR, "cannot load `ClientApp`"),
        (8, "ClientApp stopped responding.", Reason.CLIENT_ERROR, "ClientApp stopped responding."),
        (5, "Node Unavailable", Reason.NO_REPLY, "Node Unavailable"),
        (3, "Message Unavailable", Reason.NO_REPLY, "Message Unavailable"),
    ],
)
def test_errors_of_a_client_are_told_from_clients_that_are_not_reached(toy, code, text, reason, got):
    def fail(instruction, reply):
        failed = toy.is_train(instruction) and toy.client_of(reply) == BAD
        return Message(Error(code, text), reply_to=instruction) if failed else reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(faults=fail))
    assert [(r.client_id, r.reason, r.got) for r in result.rejected] == [(BAD, reason, got)]


@pytest.mark.parametrize("extra", [{"f1": 0.5}, {"train_loss": [1.0, 2.0]}, {"train_loss": []}])
@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
def test_an_odd_metric_is_left_out_and_the_update_counts(toy, make_strategy, name, extra):
    ((key, value),) = extra.items()
    plain = fit(toy, make_strategy(name), max_rounds=1)
    result = fit(toy, make_strategy(name), altering(toy, metric(key, value)), max_rounds=1)
    assert result.digest == plain.digest
    assert len(result.rounds[0].accepted) == 5
    assert (BAD, Reason.METRIC, key) in {(r.client_id, r.reason, r.key) for r in result.rejected}
    terms = [(toy.examples(i), 1 / (i + 3)) for i in range(5) if key == "f1" or f"{i:02d}" != BAD]
    mean = sum(n * loss for n, loss in terms) / sum(n for n, _ in terms)
    assert result.rounds[0].metrics["train_loss"] == pytest.approx(mean)
    assert {r.client_id for r in result.rejected} == {BAD}


def test_values_too_large_for_an_exact_sum_are_left_out_whatever_the_order(toy, make_strategy, without):
    for order in (slice(None), slice(None, None, -1)):
        trainer = toy.make_trainer(max_update_norm=None)
        grid = toy.make_grid(
            faults=altering(toy, put("weight", (0, 0), 1e30)), arrival=lambda messages, o=order: messages[o]
        )
        result = trainer.fit(toy.Net(), grid)
        assert {(r.client_id, r.reason, r.key) for r in result.rejected} == {
            (BAD, Reason.MAGNITUDE, "weight")
        }
        assert result.digest == without("ExactFedAvg", None)[0]


def test_updates_that_a_wrapper_cannot_clip_are_left_out(toy, make_strategy):
    def lazy(named, partition, server_round):
        return named if partition == 2 else toy.local_fit(named, partition, server_round)

    for name in ("DPServerFixed", "DPServerAdaptive"):
        grid = toy.make_grid(app=toy.make_app(fit=lazy))
        result = toy.make_trainer(make_strategy(name)).fit(toy.Net(), grid)
        assert {(r.client_id, r.reason) for r in result.rejected} == {(BAD, Reason.NORM)}


class Echo(LocalGrid):
    """Hands in what it is told besides the true replies, at every pull."""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        return [*replies, *(extra for extra in map(self.extra, replies) if extra is not None)]

    def extra(self, reply):
        return None


def test_a_second_reply_of_one_client_does_not_count(toy, make_strategy):
    class Twice(Echo):
        def extra(self, reply):
            return reply if toy.client_of(reply) == BAD else None

    for name in STREAMED_AND_COLLECTED:
        result = toy.make_trainer(make_strategy(name), max_rounds=1).fit(
            toy.Net(), toy.make_grid(grid_class=Twice)
        )
        plain = toy.make_trainer(make_strategy(name), max_rounds=1).fit(toy.Net(), toy.make_grid())
        assert (BAD, Reason.DUPLICATE) in {(r.client_id, r.reason) for r in result.rejected}
        assert result.digest == plain.digest


def test_replies_of_an_earlier_round_and_of_a_client_not_sampled_do_not_count(toy):
    class Late(Echo):
        kept = None

        def extra(self, reply):
            if not reply.has_content() or "arrays" not in reply.content:
                return None
            if self.kept is None:
                self.kept = copy.deepcopy(reply)
                return None
            if reply.content["client"]["server-round"] == 1:
                stranger = copy.deepcopy(reply)
                stranger.metadata.__dict__["_reply_to_message_id"] = "never sent"
                return stranger
            late, self.kept = self.kept, copy.deepcopy(reply)
            return late if late.content["client"]["server-round"] == 1 else None

    result = toy.make_trainer().fit(toy.Net(), toy.make_grid(2, grid_class=Late))
    assert [r.reason for r in result.rounds[0].rejected] == [Reason.NOT_SAMPLED]
    assert [r.reason for r in result.rounds[1].rejected] == [Reason.STALE]
    assert result.digest == toy.make_trainer().fit(toy.Net(), toy.make_grid(2)).digest


def test_no_client_has_no_common_metrics():
    assert common_metrics({}, 1) == (set(), [])
