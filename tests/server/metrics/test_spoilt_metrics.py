"""A metric that cannot be pooled spoils itself alone; its weighted mean can be asked for by name."""

import pytest
import torch
import torch.nn.functional as F
from _pooling import (
    CLASSES,
    DEVICE,
    VALIDATION,
    WARNINGS,
    Base,
    Data,
    app_of,
    metrics_left_out,
    pooled_predictions,
    run,
)
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_fl_ext import FederatedTrainer, LightningFLError, LocalGrid, client_app

pytestmark = WARNINGS


class Elbo(Metric):
    """Divides by the number of a client's training examples, as an evidence lower bound does."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, x):
        self.total += x.sum()

    def compute(self):
        return self.total / self.n


class ElboByState(Elbo):
    """Has the constant among its states."""

    def __init__(self, n):
        super().__init__(1)
        self.add_state("count", torch.tensor(float(n)), dist_reduce_fx="mean")

    def compute(self):
        return self.total / self.count


class Breaks(Elbo):
    """Cannot be merged on any server."""

    def __init__(self, n):
        super().__init__(1)
        self.add_state("other", torch.tensor(0.0), dist_reduce_fx=breaks)


def breaks(values):
    raise ZeroDivisionError("no such sum")


def module_of(n, kind=Elbo):
    class Bayes(Base):
        def __init__(self):
            super().__init__()
            self.acc = MulticlassAccuracy(CLASSES, average="micro")
            self.elbo = kind(n)

        def measure(self, logits, y):
            self.acc(logits, y)
            self.elbo(logits.square())
            self.log_dict({"val_acc": self.acc, "val_elbo": self.elbo})

    return Bayes


def everybodys(kind=Elbo):
    """Four clients with a constant each; the third has no data."""
    return app_of([module_of(100 + 7 * c, kind) for c in range(4)])


@pytest.mark.parametrize("kind", [Elbo, ElboByState])
def test_the_others_are_pooled_over_all_clients_and_it_is_named(tmp_path, kind):
    client = everybodys(kind)
    trainer = run(tmp_path, module_of(100, kind), client=client)
    want = multiclass_accuracy(*pooled_predictions(trainer.result.model), CLASSES, "micro")
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want), abs=1e-6)
    assert metrics_left_out(trainer, "0") == []  # has the server's constant
    for client in "123":
        (rejection,) = metrics_left_out(trainer, client)
        assert rejection.key == "elbo"
        assert "`FederatedTrainer(average_metrics=('elbo',))`" in rejection.got
        assert "`--average-metrics elbo`" in rejection.got


@pytest.mark.parametrize("kind", [Elbo, ElboByState, Breaks])
def test_a_weighted_mean_is_the_clients_values_by_their_examples(tmp_path, kind):
    client = everybodys(kind)
    trainer = run(tmp_path, module_of(1, kind), client=client, average_metrics=["elbo"])
    assert not [r for c in "0123" for r in metrics_left_out(trainer, c)]
    if kind is not Breaks:
        squares = [pooled_predictions(trainer.result.model, [c])[0].square().sum() for c in range(4)]
        want = sum(n * s / (100 + 7 * c) for c, (n, s) in enumerate(zip(VALIDATION, squares, strict=True)))
        want = float(want) / sum(VALIDATION)
        assert trainer.callback_metrics["val_elbo"] == pytest.approx(want, rel=1e-5)
    assert trainer.callback_metrics["val_elbo"] > 0
    want = multiclass_accuracy(*pooled_predictions(trainer.result.model), CLASSES, "micro")
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want), abs=1e-6)


def test_a_reduction_that_raises_costs_that_metric_alone(tmp_path, caplog):
    client = everybodys(Breaks)
    trainer = run(tmp_path, module_of(1, Breaks), client=client)
    assert str(trainer.callback_metrics["val_elbo"]) == "nan"
    assert "ZeroDivisionError: no such sum (test_spoilt_metrics.py:" in caplog.text
    want = multiclass_accuracy(*pooled_predictions(trainer.result.model), CLASSES, "micro")
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want), abs=1e-6)


def test_what_is_computed_from_it_is_over_the_same_clients(tmp_path):
    """A sum of two metrics, of which one is over fewer clients than the other, would be no number at all."""

    def module_of(scale):
        class Sum(Base):
            def __init__(self):
                super().__init__()
                self.loss, self.elbo = MeanMetric(), Elbo(scale)
                self.both = self.loss + self.elbo
                self.acc = MulticlassAccuracy(CLASSES, average="micro")

            def measure(self, logits, y):
                self.loss(F.cross_entropy(logits, y), len(y))
                self.elbo.update(logits.square())
                self.acc(logits, y)

            def on_validation_epoch_end(self):
                for name in ("loss", "both", "acc"):
                    self.log(f"val_{name}", getattr(self, name).compute())
                for metric in (self.loss, self.elbo, self.acc):
                    metric.reset()

        return Sum

    trainer = run(tmp_path, module_of(10), client=app_of([module_of(10)] * 3 + [module_of(11)]))
    logits, y = pooled_predictions(trainer.result.model)
    kept = slice(0, VALIDATION[0] + VALIDATION[1])
    loss = F.cross_entropy(logits[kept], y[kept])
    assert trainer.callback_metrics["val_loss"] == pytest.approx(float(loss), abs=1e-5)
    both = loss + logits[kept].square().sum() / 10
    assert trainer.callback_metrics["val_both"] == pytest.approx(float(both), rel=1e-5)
    want = multiclass_accuracy(logits, y, CLASSES, "micro")
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want), abs=1e-6)


def test_a_collection_is_averaged_by_its_name(tmp_path):
    from _pooling import LogsObjects, expected

    trainer = run(tmp_path, LogsObjects, average_metrics=("val",))
    want = expected(*pooled_predictions(trainer.result.model))
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want["val_acc"]), abs=1e-6)
    name = "val/MulticlassF1Score"
    assert trainer.callback_metrics[name] != pytest.approx(float(want[name]), abs=1e-3)


def test_a_name_of_no_metric_is_refused_before_the_first_round(tmp_path):
    trainer = FederatedTrainer(average_metrics=("val_elbo",), default_root_dir=tmp_path)
    grid = LocalGrid(client_app(module_of(1), Data, DEVICE), 3)
    with pytest.raises(LightningFLError, match=r"`average_metrics` names `val_elbo`.*: `acc`, `elbo`"):
        trainer.fit(module_of(1), grid)
    with pytest.raises(TypeError, match=r"`average_metrics` must be a tuple of names"):
        FederatedTrainer(average_metrics="elbo")
