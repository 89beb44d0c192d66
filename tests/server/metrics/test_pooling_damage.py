"""Clients that fail, drift apart, or send damaged metric states: named, and the others count."""

import pytest
from _pooling import (
    CLASSES,
    DEVICE,
    WARNINGS,
    Data,
    LogsObjects,
    app_of,
    expected,
    is_evaluation,
    metrics_left_out,
    only,
    pooled_predictions,
    run,
)
from flwr.app import ConfigRecord, MetricRecord
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score

from lightning_fl_ext import FederatedTrainer, LightningFLError, LocalGrid, client_app
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar, StageMetrics
from lightning_fl_ext.server.screening.rejection import Reason

pytestmark = WARNINGS


def reasons(trainer, key=None):
    return {
        (r.client_id, r.key)
        for r in trainer.rounds[-1].rejected
        if r.reason is Reason.METRIC and (key is None or r.key == key)
    }


def test_clients_that_fail_are_told_of_though_others_are_idle(tmp_path):
    class Fails(LogsObjects):
        def measure(self, logits, y):
            raise RuntimeError("camera on fire")

    trainer = FederatedTrainer(enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(LightningFLError, match=r"all 3 clients with examples failed.*camera on fire"):
        trainer.validate(Fails, LocalGrid(client_app(Fails, Data, DEVICE), 4))


DRIFT = {
    "class": (MulticlassRecall, {}, "MulticlassRecall"),
    "ignore_index": (MulticlassF1Score, {"ignore_index": 0}, "ignore_index: expected nothing, got 0"),
    "top_k": (MulticlassF1Score, {"top_k": 2}, "top_k: expected 1, got 2"),
    "average": (MulticlassF1Score, {"average": "micro"}, 'average: expected "macro", got "micro"'),
}


@pytest.mark.parametrize("kind", DRIFT)
def test_another_configuration_is_left_out_by_name_and_the_others_count(tmp_path, kind):
    metric, options, difference = DRIFT[kind]
    usual = only(("f1", lambda: MulticlassF1Score(CLASSES)))
    other = only(("f1", lambda: metric(CLASSES, **options)))
    trainer = run(tmp_path, usual, client=app_of([usual, usual, usual, other]))
    (rejection,) = [r for r in trainer.rounds[-1].rejected if r.client_id == "3" and r.key == "f1"][-1:]
    assert difference in rejection.got
    assert "metric `f1`" in rejection.got
    want = multiclass_f1_score(*pooled_predictions(trainer.result.model, [0, 1]), CLASSES)
    assert trainer.callback_metrics["val_f1"] == pytest.approx(float(want), abs=1e-6)


def test_other_thresholds_are_left_out_by_name(tmp_path):
    usual, other = (only(("auroc", lambda t=t: BinaryAUROC(thresholds=t))) for t in (20, 50))
    trainer = run(tmp_path, usual, client=app_of([usual, usual, usual, other]))
    assert ("3", "auroc") in reasons(trainer)
    logits, y = pooled_predictions(trainer.result.model, [0, 1])
    want = binary_auroc(logits.softmax(-1)[:, 0], (y == 0).long(), thresholds=20)
    assert trainer.callback_metrics["val_auroc"] == pytest.approx(float(want), abs=1e-5)


@pytest.mark.parametrize("kind", ["one has more", "one has fewer"])
def test_a_metric_that_not_all_have_is_left_out_by_name_and_the_others_count(tmp_path, kind):
    usual = only(("f1", lambda: MulticlassF1Score(CLASSES)))
    more = only(("f1", lambda: MulticlassF1Score(CLASSES)), ("acc", lambda: MulticlassAccuracy(CLASSES)))
    (server, other), metric, difference = {
        "one has more": ((usual, more), "acc", "the server's module has no metric 'acc'. It has ['f1']."),
        "one has fewer": ((more, usual), "acc", "lacks the metric `acc`, which most clients sent."),
    }[kind]
    trainer = run(tmp_path, server, client=app_of([server, server, server, other]))
    (rejection,) = metrics_left_out(trainer, "3")
    assert rejection.key == metric
    assert rejection.got.startswith(difference)
    assert f"`exclude_metrics=({metric!r},)`" in rejection.got.replace('"', "'")
    want = multiclass_f1_score(*pooled_predictions(trainer.result.model), CLASSES)
    assert trainer.callback_metrics["val_f1"] == pytest.approx(float(want), abs=1e-6)


def test_where_all_differ_from_the_server_there_is_no_number(tmp_path):
    server, client = (only(("f1", lambda n=n: MulticlassF1Score(n))) for n in (CLASSES + 1, CLASSES))
    trainer = run(tmp_path, server, client=app_of([client] * 4))
    assert str(trainer.callback_metrics["val_f1"]) == "nan"
    drift = [r for r in trainer.rounds[-1].rejected if r.key == "f1"]
    assert {r.client_id for r in drift} == {"0", "1", "2", "3"}
    assert all("num_classes: expected 4, got 3" in r.got for r in drift)


def states_changed(change):
    def damage(reply):
        stage = StageMetrics.from_bytes(reply.content[METRIC_STATES]["validate"], client_id="3")
        for metric in stage.pack.metrics.values():
            for state, array in list(metric.states.items()):
                metric.states[state] = change(array)
        reply.content[METRIC_STATES] = ConfigRecord({"validate": stage.to_bytes()})

    return damage


def holding(**entries):
    def damage(reply):
        reply.content[METRIC_STATES] = ConfigRecord(entries)

    return damage


def truncated(reply):
    reply.content[METRIC_STATES] = ConfigRecord({"validate": reply.content[METRIC_STATES]["validate"][:-7]})


def other_kind(reply):
    reply.content[METRIC_STATES] = MetricRecord({"validate": 1.0})


DAMAGE = {
    "nan": states_changed(lambda a: a * float("nan")),
    "shape": states_changed(lambda a: a.reshape(-1)[:0]),
    "huge": states_changed(lambda a: a * 0 + 2**62),
    "truncated": truncated,
    "no_safetensors": holding(validate=b"no such thing"),
    "empty": holding(validate=b""),
    "text": holding(validate="text"),
    "number": holding(validate=3),
    "other_kind": other_kind,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_states_never_stop_the_round_nor_change_the_others(tmp_path, kind):
    def faults(_, reply):
        if is_evaluation(reply, "3"):
            DAMAGE[kind](reply)
        return reply

    trainer = run(tmp_path, LogsObjects, faults=faults)
    assert any(r.client_id == "3" and r.reason is Reason.METRIC for r in trainer.rounds[-1].rejected) or (
        kind == "other_kind"  # two MetricRecords: the whole reply is left out
        and any(r.client_id == "3" for r in trainer.rounds[-1].rejected)
    )
    want = expected(*pooled_predictions(trainer.result.model, [0, 1]))
    for name in set(want) - {"val_loss"}:
        assert trainer.callback_metrics[name] == pytest.approx(float(want[name]), abs=1e-6), name


def test_a_clients_own_story_of_the_names_does_not_change_the_others(tmp_path):
    """One client says that `val_acc` is the loss, and the loss is `acc`."""

    def faults(_, reply):
        if is_evaluation(reply, "3"):
            stage = StageMetrics.from_bytes(reply.content[METRIC_STATES]["validate"], client_id="3")
            lie = StageMetrics(stage.pack, {"val_loss": ("acc",)}, {"val_acc": Scalar("mean", 20)})
            reply.content[METRIC_STATES] = ConfigRecord({"validate": lie.to_bytes()})
        return reply

    trainer = run(tmp_path, LogsObjects, faults=faults)
    for name, value in expected(*pooled_predictions(trainer.result.model)).items():
        assert trainer.callback_metrics[name] == pytest.approx(float(value), abs=1e-6), name


def test_a_value_without_states_is_left_out_by_name(tmp_path):
    """A client of one's own, say, that answers as any Flower client does."""

    def faults(_, reply):
        if is_evaluation(reply, "3"):
            del reply.content[METRIC_STATES]
        return reply

    trainer = run(tmp_path, LogsObjects, faults=faults)
    assert ("3", "val/MulticlassF1Score, val/MulticlassRecall, val_acc") in reasons(trainer)
    want = expected(*pooled_predictions(trainer.result.model, [0, 1]))
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want["val_acc"]), abs=1e-6)


def test_clients_without_states_are_averaged_as_in_flower(tmp_path):
    def faults(_, reply):
        if reply.has_content() and METRIC_STATES in reply.content:
            del reply.content[METRIC_STATES]
        return reply

    trainer = run(tmp_path, LogsObjects, faults=faults)
    loss = expected(*pooled_predictions(trainer.result.model))["val_loss"]
    assert trainer.callback_metrics["val_loss"] == pytest.approx(float(loss), abs=1e-6)
