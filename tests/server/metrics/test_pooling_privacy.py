"""Which metric states leave a client: not rows of examples, not what it leaves out, and none unasked."""

import logging

import pytest
import torch.nn.functional as F
from _pooling import (
    CLASSES,
    DEVICE,
    WARNINGS,
    Base,
    Data,
    LogsObjects,
    app_of,
    app_of_apps,
    expected,
    is_evaluation,
    metrics_left_out,
    only,
    pooled_predictions,
    run,
)
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torchmetrics import RunningMean
from torchmetrics.classification import BinaryAUROC, MulticlassAUROC
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

from lightning_fl_ext import (
    FederatedTrainer,
    LightningFLError,
    LocalGrid,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundLedger,
    client_app,
    verify_ledger,
)
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics
from lightning_fl_ext.server.screening.rejection import Reason
from lightning_fl_ext.wire import from_record

pytestmark = WARNINGS


ExactAUROC = only(("auroc", lambda: MulticlassAUROC(CLASSES)))


def test_a_metric_with_rows_of_examples_stops_the_run_and_says_what_to_do(tmp_path):
    with pytest.raises(LightningFLError) as error:
        run(tmp_path, ExactAUROC, max_rounds=3)
    message = str(error.value)
    assert message.startswith(
        "all 4 clients asked failed, before any round has worked. One of them: client `0`"
    )
    assert "metric `auroc` (MulticlassAUROC)" in message
    assert "thresholds=100" in message
    assert 'allow_example_states=("auroc",)' in message
    assert not Base.seen, "nothing was computed first"


def test_a_validation_alone_stops_as_well(tmp_path):
    trainer = FederatedTrainer(enable_progress_bar=False, default_root_dir=tmp_path)
    with pytest.raises(LightningFLError, match="all 4 clients asked failed"):
        trainer.validate(ExactAUROC, LocalGrid(client_app(ExactAUROC, Data, DEVICE), 4))


def test_with_permission_rows_of_examples_are_pooled(tmp_path):
    client = client_app(ExactAUROC, Data, DEVICE, allow_example_states=("auroc",))
    trainer = run(tmp_path, ExactAUROC, client=client)
    logits, y = pooled_predictions(trainer.result.model)
    want = multiclass_auroc(logits.softmax(-1), y, CLASSES)
    assert trainer.callback_metrics["val_auroc"] == pytest.approx(float(want), abs=1e-6)


def test_binned_metrics_need_no_permission(tmp_path):
    Binned = only(("auroc", lambda: BinaryAUROC(thresholds=20)))
    trainer = run(tmp_path, Binned)
    logits, y = pooled_predictions(trainer.result.model)
    want = binary_auroc(logits.softmax(-1)[:, 0], (y == 0).long(), thresholds=20)
    assert trainer.callback_metrics["val_auroc"] == pytest.approx(float(want), abs=1e-5)


def test_what_cannot_be_merged_stops_the_run(tmp_path):
    class Smooths(Base):
        def __init__(self):
            super().__init__()
            self.smooth = RunningMean()

        def measure(self, logits, y):
            self.smooth(F.cross_entropy(logits, y))

    with pytest.raises(LightningFLError, match=r"metric `smooth` \(RunningMean\).*Use the wrapped metric"):
        run(tmp_path, Smooths)


class WithSmooth(LogsObjects):
    """Metrics that may leave, one that cannot be merged and one that must not leave."""

    def __init__(self):
        super().__init__()
        self.smooth = RunningMean()
        self.auroc = MulticlassAUROC(CLASSES)

    def measure(self, logits, y):
        super().measure(logits, y)
        self.smooth(F.cross_entropy(logits, y))
        self.log("val_smooth", self.smooth)
        self.auroc.update(logits.softmax(-1), y)

    def on_validation_epoch_end(self):
        self.log("val_auroc", self.auroc.compute())
        self.auroc.reset()


def test_what_the_clients_leave_out_hinders_nothing_and_is_not_reported(tmp_path):
    client = client_app(WithSmooth, Data, DEVICE, exclude_metrics=("smooth", "auroc"))
    trainer = run(tmp_path, WithSmooth, client=client)
    want = expected(*pooled_predictions(trainer.result.model))
    own = {n: v for n, v in trainer.callback_metrics.items() if n in want or n.startswith("val")}
    assert own == pytest.approx({name: float(value) for name, value in want.items()}, abs=1e-6)
    assert {r.reason for r in trainer.rounds[-1].rejected} == {Reason.IDLE}


def test_what_one_client_leaves_out_is_pooled_from_the_others_and_named(tmp_path):
    replies = []

    def look(_, reply):
        if is_evaluation(reply, "3"):
            replies.append((dict(reply.content[METRIC_STATES]), dict(reply.content["metrics"])))
        return reply

    apps = [client_app(LogsObjects, Data, DEVICE)] * 3
    apps.append(client_app(LogsObjects, Data, DEVICE, exclude_metrics=("acc",)))
    trainer = run(tmp_path, LogsObjects, client=app_of_apps(apps), faults=look)
    ((states, metrics),) = replies
    assert "acc" not in StageMetrics.from_bytes(states["validate"], client_id="3").pack.metrics
    assert "val_acc" not in metrics
    want = expected(*pooled_predictions(trainer.result.model))
    of_others = expected(*pooled_predictions(trainer.result.model, [0, 1]))
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(of_others["val_acc"]), abs=1e-6)
    for name in set(want) - {"val_acc"}:
        assert trainer.callback_metrics[name] == pytest.approx(float(want[name]), abs=1e-6), name
    (named,) = metrics_left_out(trainer, "3")
    assert str(named).endswith("odd-metric, `acc`: expected metric states, got left out by the client")


def test_one_failing_client_does_not_stop_the_run(tmp_path):
    client = app_of([LogsObjects, LogsObjects, LogsObjects, ExactAUROC])
    trainer = run(tmp_path, LogsObjects, client=client)
    assert trainer.rounds[-1].accepted == ("0", "1", "2")


@pytest.mark.parametrize("evaluate", [1.0, 0.0], ids=["evaluation", "fit"])
def test_a_small_client_keeps_states_and_values_and_is_named(tmp_path, evaluate):
    kept = []

    def look(instruction, reply):
        if (
            reply.has_content()
            and METRIC_STATES in reply.content
            and reply.content["client"]["client-id"] == "1"
        ):
            kept.append((dict(reply.content[METRIC_STATES]), dict(reply.content["metrics"])))
        return reply

    client = client_app(LogsObjects, Data, DEVICE, min_examples=6)
    trainer = run(tmp_path, LogsObjects, client=client, evaluate=evaluate, faults=look)
    states, metrics = kept[-1]
    stage = StageMetrics.from_bytes(states["validate"], client_id="1")
    assert stage.pack.withheld
    assert not stage.pack.metrics
    assert set(metrics) == {"num-examples"}
    missing = [r for r in trainer.rounds[-1].rejected if r.got == "too few examples"]
    assert {(r.client_id, r.key) for r in missing} == {("1", "validate")}
    if evaluate:
        want = expected(*pooled_predictions(trainer.result.model, [0, 3]))
        for name, value in want.items():
            assert trainer.callback_metrics[name] == pytest.approx(float(value), abs=1e-6), name


def test_where_every_client_is_too_small_the_value_is_nan_and_the_run_goes_on(tmp_path):
    client = client_app(LogsObjects, Data, DEVICE, min_examples=1000)
    callbacks = [RoundEarlyStopping("val_acc", mode="max", patience=2), RoundLedger(), RoundCheckpoint()]
    trainer = run(tmp_path, LogsObjects, client=client, max_rounds=5, callbacks=callbacks)
    assert str(trainer.callback_metrics["val_acc"]) == "nan"
    assert trainer.current_round == 2, "no value is no improvement"
    assert verify_ledger(tmp_path).ok


# Without this package's server


class Spy(LocalGrid):
    """Keeps copies of the replies."""

    def send_and_receive(self, messages, *, timeout=None):
        self.replies = getattr(self, "replies", [])
        for reply in super().send_and_receive(messages, timeout=timeout):
            self.replies.append(RecordDict(dict(reply.content)) if reply.has_content() else None)
            yield reply


def test_a_plain_flower_server_gets_plain_replies(caplog):
    """Exact AUROC is no matter here: no states travel."""
    caplog.set_level(logging.ERROR)
    grid = Spy(app_of([ExactAUROC] * 2), 2)
    model = ExactAUROC()
    arrays = ArrayRecord(model.state_dict())
    FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)
    assert len(grid.replies) == 2
    for content in grid.replies:
        assert len(content.array_records) == len(content.metric_records) == 1
        assert METRIC_STATES not in content
        assert from_record(content["arrays"]).keys() == model.state_dict().keys()


def test_states_travel_beside_one_array_record_and_one_metric_record(tmp_path):
    """So that Flower's mods, which insist on one ArrayRecord, work as well."""
    contents = []

    def look(_, reply):
        if reply.has_content() and reply.content.array_records:
            contents.append(RecordDict(dict(reply.content)))
        return reply

    run(tmp_path, LogsObjects, evaluate=0.0, faults=look)
    assert len(contents) == 4
    for content in contents:
        assert len(content.array_records) == len(content.metric_records) == 1
        assert set(content[METRIC_STATES]) <= {"train", "validate"}
