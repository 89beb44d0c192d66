"""Plain numbers that clients log are reduced over clients as over batches."""

import pytest
import torch
import torch.nn.functional as F
from _pooling import WARNINGS, Base, LogsObjects, pooled_predictions, pooled_seen, run
from flwr.app import MetricRecord

from lightning_fl_ext import ExactFedAvg
from lightning_fl_ext.metrics import MetricPack
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.pooling import reduce_scalars

pytestmark = WARNINGS


def test_scalars_of_a_module_without_metrics_weigh_by_validation_examples(tmp_path):
    class NoMetrics(Base):
        def measure(self, logits, y):
            self.log("val_loss", F.cross_entropy(logits, y))

    trainer = run(tmp_path, NoMetrics, evaluate=0.0)
    loss = F.cross_entropy(*pooled_seen())
    assert trainer.callback_metrics["val_loss"] == pytest.approx(float(loss), abs=1e-6)


def logs(**scalars):
    """What a client that logs these numbers tells of its validation."""
    return {"validate": StageMetrics(MetricPack({}, "x", 9), {}, scalars)}


def replies(examples=9, **losses):
    return {client: ClientUpdate({}, examples, metrics={"loss": loss}) for client, loss in losses.items()}


@pytest.mark.parametrize(("reduction", "value"), [("mean", 4.0), ("sum", 6.0), ("min", 1.0), ("max", 5.0)])
def test_a_scalar_is_reduced_as_logged_over_the_clients_that_log_it(reduction, value):
    stages = {"a": logs(loss=Scalar(reduction, 1)), "b": logs(loss=Scalar(reduction, 3)), "c": logs()}
    updates = {**replies(a=1.0, b=5.0), "c": ClientUpdate({}, 9)}
    assert reduce_scalars(updates, stages) == {"loss": value}


def test_a_client_that_tells_no_examples_of_a_scalar_counts_by_those_of_its_reply():
    stages = {"a": logs(loss=Scalar("mean", 1)), "b": {}}
    assert reduce_scalars(replies(3, a=1.0, b=5.0), stages) == {"loss": 4.0}


def test_a_client_that_reduces_a_scalar_unlike_most_is_left_out_and_named(caplog):
    stages = {client: logs(loss=Scalar("mean", 1)) for client in "abc"} | {"d": logs(loss=Scalar("sum", 3))}
    assert reduce_scalars(replies(a=1.0, b=2.0, c=3.0, d=9.0), stages) == {"loss": 2.0}
    assert "`loss` is reduced by mean, but not by client(s) `d`" in caplog.text
    del stages["b"], stages["c"]
    assert str(reduce_scalars(replies(a=1.0, d=9.0), stages)["loss"]) == "nan", "no majority, no number"


@pytest.mark.parametrize("evaluate", [1.0, 0.0], ids=["evaluation", "fit"])
def test_plain_numbers_are_reduced_over_clients_as_over_batches(tmp_path, evaluate):
    class Reduces(Base):
        def measure(self, logits, y):
            self.log("n", torch.tensor(float(len(y))), reduce_fx="sum")
            self.log("largest", y.float().max(), reduce_fx="max")
            self.log("smallest", logits.min(), reduce_fx="min")

    trainer = run(tmp_path, Reduces, evaluate=evaluate)
    logits, y = pooled_predictions(trainer.result.model) if evaluate else pooled_seen()
    want = {"n": len(y), "largest": float(y.max()), "smallest": float(logits.min())}
    assert {name: trainer.callback_metrics[name] for name in want} == pytest.approx(want)


def test_a_function_of_ones_own_for_the_clients_numbers_has_the_last_word(tmp_path):
    def worst(contents, key):
        return MetricRecord({"val_loss": max(content["metrics"]["val_loss"] for content in contents)})

    strategy = ExactFedAvg(evaluate_metrics_aggr_fn=worst, fraction_evaluate=1.0)
    trainer = run(tmp_path, LogsObjects, strategy=strategy)
    parts = [pooled_predictions(trainer.result.model, [client]) for client in (0, 1, 3)]
    want = max(float(F.cross_entropy(*part)) for part in parts)
    assert trainer.callback_metrics["val_loss"] == pytest.approx(want, abs=1e-6)
