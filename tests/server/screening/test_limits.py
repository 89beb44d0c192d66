"""One client alone cannot stop a run, slow it down, rename its metrics or fill its files."""

import json
import logging
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from _altering import BAD, altering
from _hostile import ENTRIES_BYTES, is_evaluation, metrics, record, renamed, reports, states_of
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lightning.pytorch.loggers import CSVLogger
from safetensors.numpy import save

from lightning_fl_ext import (
    Limits,
    RoundCallback,
    RoundCheckpoint,
    RoundLedger,
    run_local,
    server_app,
    verify_ledger,
)
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics import MetricPack
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar, StageMetrics
from lightning_fl_ext.server import Reason
from lightning_fl_ext.server.metrics.pooling import read_stages
from lightning_fl_ext.server.screening.checks import _screen_keys
from lightning_fl_ext.server.screening.limits import ExpectedContent, screen_name, screen_size
from lightning_fl_ext.server.screening.rejection import Rejected

STRATEGIES = ("ExactFedAvg", "FedAvg")
MANY = 100_000


def array(**changes):
    def alter(toy, reply):
        for name, value in changes.items():
            setattr(reply.content["arrays"]["weight"], name, value)
        return reply

    return alter


def arrays_named(names):
    one = Array("float32", (0,), "numpy.ndarray", b"")
    return record("arrays", ArrayRecord(dict.fromkeys(names, one)))


def a_config_named_metrics(toy, reply):
    reply = renamed(metrics="numbers")(toy, reply)
    return record("metrics", ConfigRecord({"a": 1}))(toy, reply)


LEFT_OUT = {
    "near the largest float": (metrics(train_loss=1.7e308), Reason.MAGNITUDE, "train_loss"),
    "a huge whole number": (metrics(train_loss=-(10**5000)), Reason.MAGNITUDE, "train_loss"),
    "a config record named metrics": (a_config_named_metrics, Reason.UNDECODABLE, "metrics"),
    "half a character in a name": (metrics(**{"\ud800": 1.0}), Reason.NAME, "\\ud800"),
    "a name that turns text round": (metrics(**{"\u202eloss": 1.0}), Reason.NAME, "\\u202eloss"),
    "a name that controls": (metrics(**{"\x1b[2J": 1.0}), Reason.NAME, "\\x1b[2J"),
    "a name of a megabyte": (metrics(**{"n" * 10**6: 1.0}), Reason.NAME, "n" * 40),
    "a record's name of a megabyte": (record("n" * 10**6, ConfigRecord()), Reason.NAME, "n" * 40),
    "many wrong arrays": (arrays_named(map(str, range(5000))), Reason.OVER_LIMIT, "arrays"),
    "some wrong arrays": (arrays_named(map(str, range(900))), Reason.KEYS, "weight"),
    "many metrics": (metrics(**{f"m{i}": 1.0 for i in range(MANY)}), Reason.OVER_LIMIT, "metrics"),
    "a long list of metrics": (metrics(train_loss=[0.5] * MANY), Reason.OVER_LIMIT, "metrics"),
    "many config entries": (
        record("more", ConfigRecord({f"c{i}": i for i in range(MANY)})),
        Reason.OVER_LIMIT,
        "more",
    ),
    "a long list of config": (record("more", ConfigRecord({"c": [1] * MANY})), Reason.OVER_LIMIT, "more"),
    "a long text": (record("more", ConfigRecord({"c": "x" * 10**6})), Reason.OVER_LIMIT, "c"),
    "a huge number of config": (record("more", ConfigRecord({"c": 2**70})), Reason.MAGNITUDE, "c"),
    "many records": (
        lambda toy, reply: [reply.content.update({f"r{i}": ConfigRecord()}) for i in range(99)] and reply,
        Reason.OVER_LIMIT,
        "",
    ),
    "more bytes than the model": (array(data=b"x" * 2**21), Reason.TOO_LARGE, ""),
    "many axes": (array(shape=(1,) * MANY), Reason.UNDECODABLE, "weight"),
    "a negative axis": (array(shape=(-2, -3)), Reason.UNDECODABLE, "weight"),
    "a huge axis": (array(shape=(2**70,)), Reason.UNDECODABLE, "weight"),
    "a dtype of a megabyte": (array(dtype="f" * 10**6), Reason.UNDECODABLE, "weight"),
}


def fit(toy, strategy, alter=None, app=None, num_clients=4, **options):
    trainer = toy.make_trainer(strategy, **options)
    faults = None if alter is None else altering(toy, alter)
    return trainer.fit(toy.Net(), toy.make_grid(num_clients, app, faults=faults))


@pytest.fixture(scope="module")
def without(toy):
    """The digest of a run in which the bad client's replies are lost, by strategy."""
    known = {}

    def get(name, strategy):
        if name not in known:
            known[name] = fit(toy, strategy, lambda *_: None).digest
        return known[name]

    return get


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_reply_beyond_its_bounds_is_named_and_the_others_count(toy, make_strategy, without, name, case):
    alter, reason, key = LEFT_OUT[case]
    result = fit(toy, make_strategy(name), alter)
    assert [(r.client_id, r.reason, r.key) for r in result.rejected] == [(BAD, reason, key)] * 2
    assert result.digest == without(name, make_strategy(name))
    assert len(str(result)) < 2000


def test_every_reason_of_limits_is_tried():
    assert {reason for _, reason, _ in LEFT_OUT.values()} >= {
        Reason.OVER_LIMIT,
        Reason.NAME,
        Reason.TOO_LARGE,
    }


@pytest.mark.parametrize("name", STRATEGIES)
def test_exchanged_names_of_records_change_nothing(toy, make_strategy, name):
    exchanged = fit(toy, make_strategy(name), renamed(arrays="metrics", metrics="arrays"))
    plain = fit(toy, make_strategy(name))
    assert (exchanged.digest, exchanged.rejected) == (plain.digest, [])


def test_one_clients_names_of_records_are_not_those_of_all(toy, make_strategy):
    seen = []

    class Sees(type(make_strategy("FedAvg"))):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            seen.extend(sorted(reply.content) for reply in replies)
            return super().aggregate_train(server_round, replies)

    first_altered = altering(toy, renamed(arrays="aaa", metrics="bbb"), who="00")
    toy.make_trainer(Sees(), max_rounds=1).fit(toy.Net(), toy.make_grid(4, faults=first_altered))
    assert seen == [["arrays", "client", "metrics"]] * 4


def test_numbers_of_opposite_signs_near_the_largest_float_do_not_end_a_run(toy):
    """Two clients at once, at an evaluation whose numbers the server reduces itself."""

    def faults(instruction, reply):
        who = toy.client_of(reply)
        if who in ("01", "02") and is_evaluation(instruction):
            loss = 1.7e308 if who == "01" else -1.7e308
            reply.content["metrics"] = MetricRecord({"val_loss": loss, "num-examples": 2**26})
            told = StageMetrics(MetricPack({}, None, 2**26), {}, {"val_loss": Scalar("mean", 2**26)})
            reply.content[METRIC_STATES] = ConfigRecord({"validate": told.to_bytes()})
        return reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(4, faults=faults))
    assert {(r.client_id, r.reason, r.phase) for r in result.rejected} == {
        ("01", Reason.MAGNITUDE, "evaluate"),
        ("02", Reason.MAGNITUDE, "evaluate"),
    }
    assert np.isfinite(result.metrics["val_loss"])


def test_the_largest_numbers_there_may_be_are_reduced_without_an_error(toy):
    def faults(instruction, reply):
        if is_evaluation(instruction) and (who := toy.client_of(reply)):
            loss = 1e250 if int(who) % 2 else -1e250
            reply.content["metrics"] = MetricRecord({"val_loss": loss, "num-examples": 2**26})
            told = StageMetrics(MetricPack({}, None, 2**26), {}, {"val_loss": Scalar("mean", 2**26)})
            reply.content[METRIC_STATES] = ConfigRecord({"validate": told.to_bytes()})
        return reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(4, faults=faults))
    assert result.metrics["val_loss"] == 0.0
    assert result.rejected == []


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


# Whatever raises


def test_what_raises_while_one_reply_is_read_rejects_that_client_and_is_logged(toy, monkeypatch, caplog):
    from lightning_fl_ext.server.rounds import messages

    true = messages.screen_size

    def breaks(content, limits, expected):
        if str(content["client"]["client-id"]) == BAD:
            raise ZeroDivisionError("a bug")
        true(content, limits, expected)

    monkeypatch.setattr(messages, "screen_size", breaks)
    with caplog.at_level(logging.WARNING):
        result = fit(toy, None, max_rounds=1)
    assert {(r.client_id, r.reason, r.got.split(" (")[0]) for r in result.rejected} == {
        (BAD, Reason.UNDECODABLE, "ZeroDivisionError: a bug")
    }
    raised = [r for r in caplog.records if r.exc_info and "reading it raised" in r.message]
    assert BAD in raised[0].message
    assert raised[0].exc_info[0] is ZeroDivisionError
    assert result.rounds[0].accepted == ("00", "01", "03")


def test_what_raises_over_all_replies_names_the_clients_read(toy):
    from flwr.serverapp.strategy import FedAvg

    class Breaks(FedAvg):
        def aggregate_train(self, server_round, replies):
            raise RuntimeError("singular")

    with pytest.raises(
        LightningFLError, match=r"singular.*It had read the replies of client\(s\) `00`, `01`"
    ):
        fit(toy, Breaks(), max_rounds=1)


def test_the_error_of_a_client_is_read_at_its_end_alone(toy):
    def fail(instruction, reply):
        hers = toy.is_train(instruction) and toy.client_of(reply) == BAD
        return Message(Error(2, "x" * 10**7 + "\nValueError: no"), reply_to=instruction) if hers else reply

    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(4, faults=fail))
    (rejection,) = result.rejected
    assert rejection.reason is Reason.CLIENT_ERROR
    assert len(rejection.got) <= 400


def test_an_id_that_cannot_stand_as_one_is_none(toy, caplog):
    app = toy.make_app(name=lambda partition: "x" * 1000 if partition == 2 else f"{partition:02d}")
    result = toy.make_trainer(max_rounds=1).fit(toy.Net(), toy.make_grid(4, app))
    assert "answers the query for its client's id with none: odd-name" in caplog.text
    assert {r.reason for r in result.rejected} == {Reason.NAME}
    assert max(len(r.client_id) for r in result.rejected) < 30
    assert result.rounds[0].accepted == ("00", "01", "03")


# What is kept


def hostile_app(toy):
    """Three honest clients, and one that sends a new kind of excess in every round."""
    honest = toy.make_app()
    app = ClientApp()

    def answer(message, context):
        reply = honest(message, context)
        if int(context.node_config["partition-id"]) != 2 or message.metadata.message_type == "query":
            return reply
        number = int(message.content["config"]["server-round"])
        excess = {f"server_{i}_" + "n" * 240: 1.0 for i in range(300)}
        excess |= {f"odd_{number}_{i}_" + "n" * 240: 1.0 for i in range(300)}
        excess |= {f"told_{number}_{i}" + "n" * 240: 1.0 for i in range(300)}
        reply = metrics(**excess)(toy, reply)
        examples = int(reply.content["metrics"]["num-examples"])
        scalars = {name: Scalar("mean", examples) for name in excess if name.startswith("told")}
        told = StageMetrics(
            MetricPack({}, None, examples, excluded=tuple(excess)), dict.fromkeys(excess, ("m",)), scalars
        ).to_bytes()
        return record(METRIC_STATES, ConfigRecord({"train": told, "validate": told}))(toy, reply)

    for register in (app.train, app.evaluate, app.query):
        register()(answer)
    return app


@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg"])
def test_files_of_a_run_with_a_hostile_client_are_bounded_by_rounds_and_clients(
    toy, make_strategy, tmp_path, name
):
    def run(app, folder):
        trainer = toy.make_trainer(
            make_strategy(name),
            max_rounds=5,
            callbacks=[RoundCheckpoint(), RoundLedger()],
            logger=CSVLogger(folder / "logs"),
            default_root_dir=folder,
        )
        run_local(server_app(toy.Net, trainer), app, num_clients=4)
        assert verify_ledger(folder).ok
        state = max(folder.rglob("state.json"), key=lambda path: path.parent.name)
        return trainer.result, (folder / "ledger.jsonl").stat().st_size, state.stat().st_size

    hostile, ledger, state = run(hostile_app(toy), tmp_path / "hostile")
    plain, plain_ledger, plain_state = run(toy.make_app(), tmp_path / "plain")
    assert hostile.digest == plain.digest
    assert {r.client_id for r in hostile.rejected} == {BAD}
    assert ledger < plain_ledger + 5 * ENTRIES_BYTES
    assert state < plain_state + 5 * ENTRIES_BYTES
    assert hostile.metrics.keys() == plain.metrics.keys()


# The limits themselves


@pytest.mark.parametrize("limit", [field.name for field in fields(Limits)])
def test_a_limit_is_a_whole_number_that_is_not_negative(limit):
    with pytest.raises(TypeError, match=f"`limits.{limit}` must be a whole number"):
        Limits(**{limit: 1.5})
    with pytest.raises(ValueError, match=f"`limits.{limit}` must be at least 0"):
        Limits(**{limit: -1})


def test_limits_are_raised_by_name(toy):
    many = metrics(**{f"m{i}": 1.0 for i in range(1500)})
    assert (
        fit(toy, None, many, max_rounds=1).rejected[0].expected == "at most 1000 metrics (`Limits.metrics`)"
    )
    raised = fit(toy, None, many, max_rounds=1, limits=Limits(metrics=2000))
    assert BAD in raised.rounds[0].accepted
    with pytest.raises(TypeError, match=r"`limits` must be a `Limits`, such as `Limits\(metrics=5000\)`"):
        toy.make_trainer(limits={"metrics": 5000})


def test_a_model_warrants_the_names_and_bytes_of_its_own_arrays():
    import torch

    name = "n" * 1000
    own = {name: np.zeros(2**19, np.float64)}
    expected = ExpectedContent.of(own, torch.nn.Module())
    content = RecordDict({"arrays": ArrayRecord({name: Array(own[name])})})
    screen_size(content, Limits(), expected)
    with pytest.raises(Rejected, match="too-large"):
        screen_size(content, Limits(), ExpectedContent(own.keys(), longest_name=1000))


def test_the_metrics_of_the_module_warrant_the_bytes_of_their_states():
    import torch
    from torchmetrics import CatMetric, MeanMetric
    from torchmetrics.classification import MulticlassConfusionMatrix

    small, large, rows = (
        ExpectedContent.of({}, torch.nn.ModuleDict({"m": metric}))
        for metric in (MeanMetric(), MulticlassConfusionMatrix(100), CatMetric())
    )
    assert small.state_bytes < large.state_bytes == 64 * 8 * 100 * 100
    assert [w.example_states for w in (small, large, rows)] == [False, False, True]


@pytest.mark.parametrize("name", ["loss", "val/läuft", "Ω_2", "损失", "a b"])
def test_names_of_every_language_are_names(name):
    screen_name(name, 256)


def test_screening_the_size_of_a_reply_takes_no_memory_to_speak_of():
    content = RecordDict({"metrics": MetricRecord({f"m{i}": 1.0 for i in range(1000)})})
    content["config"] = ConfigRecord({f"c{i}": "x" * 4000 for i in range(100)})
    tracemalloc.start()
    try:
        screen_size(content, Limits(), ExpectedContent())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**16
