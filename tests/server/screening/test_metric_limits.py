"""One client alone cannot rename, inflate or displace the metrics of a run."""

import json
import tracemalloc

import numpy as np
import pytest
from _altering import BAD, altering
from _hostile import is_evaluation, metrics, record, reports, states_of
from _hostile_fit import MANY, fit
from flwr.app import ConfigRecord
from safetensors.numpy import save

from lightning_fl_ext import RoundCallback
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar
from lightning_fl_ext.server import Reason
from lightning_fl_ext.server.metrics.pooling import read_stages
from lightning_fl_ext.server.screening.checks import _screen_keys
from lightning_fl_ext.server.screening.rejection import Rejected

# Names have owners


def evaluation(alter, who=BAD):
    def faults(toy):
        def fault(instruction, reply):
            hers = is_evaluation(instruction) and toy.client_of(reply) == who
            return alter(toy, reply) if hers else reply

        return fault

    return faults


def central(model):
    return {"accuracy": 0.25}


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_names_of_the_servers_own_cannot_come_from_a_client(toy, phase):
    alter = reports(server_accuracy=0.999, clients_accepted=99.0, bytes_up=7.0, server_more=1.0)
    faults = altering(toy, alter) if phase == "train" else evaluation(alter)(toy)
    trainer = toy.make_trainer(max_rounds=2, monitor="server_accuracy", mode="max")
    result = trainer.fit(toy.Net(), toy.make_grid(4, faults=faults), evaluate=central)
    plain = toy.make_trainer(max_rounds=2).fit(toy.Net(), toy.make_grid(4), evaluate=central)
    assert result.digest == plain.digest
    assert [r.metrics for r in result.rounds] == [r.metrics for r in plain.rounds]
    assert result.metrics["server_accuracy"] == 0.25
    (first, *_) = result.rounds[1].rejected
    assert (first.client_id, first.reason) == (BAD, Reason.METRIC)
    assert first.key == "bytes_up, clients_accepted, server_accuracy and 1 more"
    assert BAD in result.rounds[1].accepted
    assert "server_more" not in result.metrics


def test_the_name_of_a_callbacks_metric_cannot_come_from_a_client(toy):
    class Epsilon(RoundCallback):
        metric_names = ("epsilon",)

    def all_report(instruction, reply):
        return (
            metrics(epsilon=0.1)(toy, reply) if toy.is_train(instruction) and reply.has_content() else reply
        )

    trainer = toy.make_trainer(max_rounds=1, callbacks=Epsilon())
    result = trainer.fit(toy.Net(), toy.make_grid(3, faults=all_report))
    assert "epsilon" not in result.metrics
    assert {r.client_id for r in result.rejected} == {"00", "01", "02"}
    assert len(result.rounds[0].accepted) == 3


def test_the_count_that_a_strategy_weighs_by_may_have_any_name(toy, make_strategy):
    from flwr.serverapp.strategy import FedAvg

    def named(instruction, reply):
        asked = toy.is_train(instruction) or is_evaluation(instruction)
        return metrics(clients_seen=3)(toy, reply) if asked else reply

    strategy = FedAvg(weighted_by_key="clients_seen")
    result = toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), toy.make_grid(3, faults=named))
    assert (len(result.rounds[0].accepted), result.rejected) == (3, [])


def test_metrics_that_one_client_alone_reports_do_not_count_and_are_named_once(toy):
    own = {f"mine_{i:03}": float(i) for i in range(900)}
    grid = toy.make_grid(4, faults=evaluation(reports(**own))(toy))
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), grid)
    assert not any(name.startswith("mine") for name in result.metrics)
    (rejection,) = result.rejected
    assert (rejection.client_id, rejection.reason) == (BAD, Reason.METRIC)
    assert rejection.key == "mine_000, mine_001, mine_002 and 897 more"


@pytest.mark.parametrize(("reporting", "counts"), [(1, False), (2, True), (4, True)])
def test_a_metric_counts_if_at_least_half_of_the_clients_report_it(toy, reporting, counts):
    def faults(instruction, reply):
        who = toy.client_of(reply)
        hers = is_evaluation(instruction) and int(who) < reporting
        return reports(f1=float(who), val_loss=1.0)(toy, reply) if hers else reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(4, faults=faults))
    assert ("f1" in result.metrics) == counts


# Counts


@pytest.mark.parametrize("claimed", [2**53, 2**26, 4])
def test_a_number_is_over_no_more_examples_than_the_reply_says(toy, claimed):
    def alter(toy, reply):
        count = int(reply.content["metrics"]["num-examples"])
        assert count == 3
        reply = metrics(val_loss=1e6)(toy, reply)
        return record(METRIC_STATES, states_of({"val_loss": Scalar("mean", claimed)}, None))(toy, reply)

    grid = toy.make_grid(4, faults=evaluation(alter)(toy))
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), grid)
    (rejection,) = result.rejected
    assert (rejection.client_id, rejection.reason) == (BAD, Reason.METRIC)
    assert "a whole number up to 3" in rejection.expected
    assert result.metrics["val_loss"] < 1e6 * 3 / (1 + 2 + 3 + 4) + 10


@pytest.mark.parametrize("count", [2**26 + 1, 2**53])
def test_an_evaluation_has_no_more_examples_than_a_fit_may_have(toy, count):
    grid = toy.make_grid(4, faults=evaluation(metrics(**{"num-examples": count}))(toy))
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), grid)
    assert [(r.client_id, r.reason, r.phase) for r in result.rejected] == [(BAD, Reason.COUNT, "evaluate")]


# Metric states

CLASS = "torchmetrics.aggregation.CatMetric"
IDLE = {"class": CLASS, "configuration": {}, "updates": 0, "states": {}}


def forged(header=None, names=None, scalars=None, arrays=None):
    """Metric states as no client of this package writes them."""
    usual = {
        "format": 1,
        "client_id": None,
        "num_examples": 1,
        "withheld": False,
        "excluded": [],
        "metrics": {},
    }
    pack = header if isinstance(header, str) else json.dumps({**usual, **(header or {})})
    about = json.dumps({"pack": pack, "names": names or {}, "scalars": scalars or {}})
    return save({"header": np.frombuffer(about.encode(), dtype=np.uint8), **(arrays or {})})


def metric_of(shapes):
    layout = {"value": {"dtype": "float32", "shapes": shapes}}
    return {"metrics": {"m": {**IDLE, "updates": 1, "states": layout}}}


STATES = {
    "many shapes": lambda: forged(metric_of([[0]] * 1_500_000), arrays={"m/value": np.zeros(0, np.float32)}),
    "many empty shapes": lambda: forged(metric_of([[]] * MANY), arrays={"m/value": np.zeros(MANY, "f4")}),
    "many empty arrays": lambda: forged(arrays={f"m/{i}": np.zeros(0, np.float32) for i in range(MANY)}),
    "many names": lambda: forged(names={f"n{i}": ["m"] for i in range(MANY)}),
    "many addresses": lambda: forged(names={"n": ["m"] * 10**6}),
    "many scalars": lambda: forged(scalars={f"n{i}": ["mean", 1] for i in range(5000)}),
    "many metrics": lambda: forged(
        {
            "metrics": {
                f"m{i}": {"class": CLASS, "configuration": {}, "updates": 0, "states": {}}
                for i in range(2000)
            }
        }
    ),
    "many excluded": lambda: forged({"excluded": [f"m{i}" for i in range(2000)]}),
    "a name of a megabyte": lambda: forged(names={"n" * 900_000: ["m"]}),
    "half a character": lambda: forged(scalars={"\ud800": ["mean", 1]}),
    "deep": lambda: forged("[" * 100_000 + "]" * 100_000),
    "a number of a megabyte": lambda: forged('{"format": ' + "9" * 900_000 + "}"),
    "many updates": lambda: forged({"metrics": {"m": {**IDLE, "updates": 2**53}}}),
    "many examples": lambda: forged({"num_examples": 2**53}),
    "many bytes": lambda: b"\0" * 2**23,
}


@pytest.mark.parametrize("case", STATES)
def test_metric_states_beyond_their_bounds_are_left_out_and_the_update_counts(toy, case):
    alter = record(METRIC_STATES, ConfigRecord({"train": STATES[case]()}))
    result = fit(toy, None, alter, max_rounds=1)
    (rejection,) = result.rejected
    assert (rejection.client_id, rejection.reason) == (BAD, Reason.METRIC)
    assert len(str(rejection)) < 1300
    assert BAD in result.rounds[0].accepted
    assert result.digest == fit(toy, None, max_rounds=1).digest


@pytest.mark.parametrize("case", STATES)
def test_metric_states_are_refused_in_little_memory(case):
    """Three times their bytes, and what parsing as much as the limits let through takes at most."""
    data = STATES[case]()
    tracemalloc.start()
    try:
        with pytest.raises(Rejected):
            read_stages({"train": data}, "a", "a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data) + 2**25


def test_work_grows_with_the_number_of_names_and_not_with_its_square():
    """Counted in comparisons of names, which no machine's speed changes."""

    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

    expected = [Name(f"own-{i}") for i in range(2000)]
    with pytest.raises(Rejected, match="keys"):
        _screen_keys(expected, [Name(f"wrong-{i}") for i in range(2000)])
    assert Name.compared < 50 * 2000
