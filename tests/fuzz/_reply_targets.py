"""Replies beyond those of plain training: what algorithms send beside the weights, evaluations, tests."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _mutations import SMALL, damage_bytes
from _target import Target
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict

from lightning_fl_ext import FedNova, Limits, Scaffold
from lightning_fl_ext.metrics import MetricPack
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar, StageMetrics
from lightning_fl_ext.server.metrics.aggregation import WEIGHTED_MEAN, aggregate_metrics
from lightning_fl_ext.server.metrics.pooling import read_stages
from lightning_fl_ext.server.metrics.sites import across_sites, keep_sites
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.checks import (
    ValueLimits,
    screen_evaluate_reply,
    screen_extras,
    screen_train_reply,
)
from lightning_fl_ext.server.screening.content import screen_metric_states, screen_size
from lightning_fl_ext.server.screening.limits import ExpectedContent
from lightning_fl_ext.server.screening.rejection import Rejected
from lightning_fl_ext.wire import to_record
from lightning_fl_ext.wire.algorithm_names import joined

WEIGHTS = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "h": np.ones(3, np.float16)}
STRATEGIES = (Scaffold(), FedNova())
EXTRA = {id(strategy): strategy.expected(WEIGHTS) for strategy in STRATEGIES}
VALUES = ValueLimits(max_term=2.0**40)
EXTREME = (float("nan"), float("inf"), 3e38, -3e38, 1e-300, 0.0, -1.0, 2.0**48)


class Reply:
    def __init__(self, content):
        self.content = content


# What algorithms send


def make_algorithm_reply(rng):
    strategy = rng.choice(STRATEGIES)
    arrays = {
        n: np.array(a, copy=True) + a.dtype.type(1) for n, a in joined(WEIGHTS, EXTRA[id(strategy)]).items()
    }
    if rng.random() < 0.4:
        name = rng.choice(list(arrays))
        flat = arrays[name].reshape(-1)
        with np.errstate(over="ignore"):
            flat[rng.randrange(flat.size)] = rng.choice(EXTREME)
    record = dict(to_record(arrays))
    name = rng.choice(list(record))
    kind = rng.randrange(5)
    fields = {f: getattr(record[name], f) for f in ("dtype", "shape", "stype", "data")}
    if kind == 0:
        record[name] = Array(**{**fields, "data": damage_bytes(fields["data"], rng)})
    elif kind == 1:
        record[name] = Array(
            **{**fields, "dtype": rng.choice(("float64", "float32", "O", "int64", "x" * 99))}
        )
    elif kind == 2:
        record[name] = Array(
            **{**fields, "shape": rng.choice(((), (0,), (-1,), (2, 3), (2**62,), (1,) * 70))}
        )
    elif kind == 3:
        record[rng.choice(("algorithm/", "algorithm/w/w", "algorithm/more", *record))] = record.pop(name)
    content = {
        "arrays": type(to_record({}))(record),
        "metrics": MetricRecord({"num-examples": rng.choice((1, 3, 2**26))}),
        "client": ConfigRecord({"client-id": "a", "server-round": 1}),
    }
    return strategy, RecordDict(content)


def read_algorithm_reply(given):
    strategy, content = given
    like = joined(WEIGHTS, EXTRA[id(strategy)])
    screen_size(content, Limits(), ExpectedContent(like.keys(), 2**16))
    read = screen_train_reply(Reply(content), "a", 1, VALUES, like)
    screen_extras(read, VALUES, strategy.check, partial(strategy.contribution, WEIGHTS))
    assert all(np.isfinite(array).all() for array in read.arrays.values())
    return read


# Evaluations and tests


def told(rng, stage):
    scalars = {"loss": Scalar(rng.choice(("mean", "sum", "min", "max")), 3, rng.choice((None, 1.5, 1e250)))}
    data = StageMetrics(MetricPack({}, "a", 3), {}, scalars).to_bytes()
    return ConfigRecord({stage: damage_bytes(data, rng) if rng.random() < 0.4 else data})


def make_evaluation(rng):
    stage = rng.choice(("validate", "test"))
    numbers = {"loss": 0.5, "num-examples": 3}
    for _ in range(rng.choice((0, 1, 1, 2))):
        value = rng.choice(SMALL) if rng.random() < 0.8 else [rng.choice((0.5, 1e300, float("inf")))] * 5
        if isinstance(value, int | float | list) and not isinstance(value, bool):
            numbers[rng.choice((*numbers, "loss/worst", "server_f1", str(rng.choice(SMALL))[:400]))] = value
    content = {"metrics": MetricRecord(numbers), "client": ConfigRecord({"client-id": "a"})}
    if rng.random() < 0.7:
        content[METRIC_STATES] = told(rng, rng.choice((stage, stage, "train", "predict")))
    if rng.random() < 0.3:
        content[rng.choice(("metrics", "client", "arrays"))] = rng.choice(
            (ConfigRecord({"a": 1}), MetricRecord({"num-examples": 3}), to_record({"w": np.zeros(2)}))
        )
    return stage, RecordDict(content)


HONEST = {"validate": 0.25, "test": 0.75}


def read_evaluation(given):
    """Read one, and put it beside those of two honest sites, whose values must come out."""
    import torch

    from lightning_fl_ext.results import ClientUpdate

    stage, content = given
    content = RecordDict(content)
    states = content.pop(METRIC_STATES, None)
    limits, expected = Limits(), ExpectedContent()
    screen_size(content, limits, expected)
    update = screen_evaluate_reply(Reply(content), "a", 1, VALUES, {})
    stages = {}
    if states is not None:
        screen_metric_states(states, limits, expected)
        stages = read_stages(
            states, "a", "a", limits, dict.fromkeys(("validate", "test"), update.num_examples)
        )
    honest = {c: ClientUpdate({}, 3, client_id=c, metrics={"loss": HONEST[stage]}) for c in ("b", "c")}
    updates = {"a": update, **honest}
    measured, left_out = aggregate_metrics(
        updates, {"a": stages, "b": {}, "c": {}}, torch.nn.Module(), MetricRecord(), WEIGHTED_MEAN, 1
    )
    assert np.isfinite(measured["loss"])  # whatever one tells, the others have told theirs
    sites = keep_sites(updates, {*measured, "loss"}, {"loss": "min"}, 8)
    spread = across_sites(sites, {"loss": "min"})
    assert spread["loss/best"] <= HONEST[stage] <= spread["loss/worst"]
    record = RoundRecord(1, sites=sites, metrics=measured | spread, rejected=tuple(left_out))
    return RoundRecord.from_json(record.to_json())


REPLY_TARGETS = {
    "algorithm replies": Target(make_algorithm_reply, read_algorithm_reply, (Rejected,)),
    "evaluations": Target(make_evaluation, read_evaluation, (Rejected,)),
}
