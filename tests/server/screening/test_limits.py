"""One client alone cannot stop a run, slow it down or fill its files."""

import logging
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from _altering import BAD, altering
from _hostile import ENTRIES_BYTES, is_evaluation, metrics, record, renamed
from _hostile_fit import MANY, fit
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from lightning.pytorch.loggers import CSVLogger

from lightning_fl_ext import Limits, RoundCheckpoint, RoundLedger, run_local, server_app, verify_ledger
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics import MetricPack
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar, StageMetrics
from lightning_fl_ext.server import Reason
from lightning_fl_ext.server.screening.content import screen_size
from lightning_fl_ext.server.screening.limits import ExpectedContent
from lightning_fl_ext.server.screening.rejection import Rejected
from lightning_fl_ext.server.screening.values import screen_name

STRATEGIES = ("ExactFedAvg", "FedAvg")


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
    raised = [r for r in caplog.records if "reading it raised" in r.message]
    assert BAD in raised[0].message
    assert "ZeroDivisionError" in raised[0].message
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
    assert len(rejection.got) <= 1000


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
