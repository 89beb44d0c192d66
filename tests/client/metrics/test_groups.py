"""Members of a collection that look alike after the first batch have values of their own all the same."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecision,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.text import BLEUScore

from lightning_fl_ext import FederatedTrainer, FlowerBridge, LocalGrid, client_app
from lightning_fl_ext.client.metrics.groups import stop_guessing

SCORES = torch.tensor([0.95, 0.1, 0.6, 0.7, 0.8, 0.2])
LABELS = torch.tensor([1, 0, 0, 0, 0, 1])


@pytest.fixture
def measured(kit):
    class Measured(kit.Lit):
        def __init__(self):
            super().__init__()
            strict = {"loose": BinaryAccuracy(threshold=0.5), "strict": BinaryAccuracy(threshold=0.9)}
            self.both = MetricCollection(strict)

        def training_step(self, batch, _):
            return self.layer.weight.square().sum()

        def validation_step(self, batch, _):
            self.both.update(*batch)
            self.log_dict(self.both)

    return Measured


def loader(_=None):
    return DataLoader(TensorDataset(SCORES, LABELS), batch_size=2)


def test_two_thresholds_give_two_values(kit, measured):
    """On the first batch both give the same states, and torchmetrics computes one value for both."""
    trainer = kit.trainer(FlowerBridge())
    trainer.fit(measured(), loader(), loader())
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert found == pytest.approx({"loose": 2 / 6, "strict": 5 / 6})


def test_their_pooled_values_are_their_own(measured):
    trainer = FederatedTrainer(max_rounds=1, enable_progress_bar=False)
    trainer.fit(measured, LocalGrid(client_app(measured, loader, {"accelerator": "cpu"}), 2))
    found = {name: trainer.callback_metrics[name] for name in ("loose", "strict")}
    assert found == pytest.approx({"loose": 2 / 6, "strict": 5 / 6})


class Signed(MeanSquaredError):
    def update(self, preds, target):
        self.sum_squared_error += (preds - target).sum()
        self.total += len(preds)


class Worded(Signed):
    def __init__(self, words):
        super().__init__()
        self.words = np.array(words, dtype=object)


UNLIKE = {
    "without a plain form": [Worded(["a"]), Worded(["b"])],
    "threshold": [BinaryAccuracy(0.5), BinaryPrecision(0.6)],
    "ignore_index": [MulticlassAccuracy(3), MulticlassF1Score(3, ignore_index=2)],
    "top_k": [MulticlassAccuracy(3), MulticlassPrecision(3, top_k=2)],
    "n_gram": [BLEUScore(1), BLEUScore(2)],
    "update": [MeanSquaredError(), Signed()],
}
ALIKE = {
    "counts": [BinaryAccuracy(), BinaryPrecision(), BinaryF1Score()],
    "average": [MulticlassAccuracy(3), MulticlassF1Score(3, average="weighted")],
    "squared": [MeanSquaredError(), MeanSquaredError(squared=False), MeanAbsoluteError(), MeanMetric()],
}


def named(metrics):
    return MetricCollection({str(i): metric.clone() for i, metric in enumerate(metrics)})


@pytest.mark.parametrize("metrics", UNLIKE.values(), ids=UNLIKE)
def test_members_that_are_updated_otherwise_are_kept_apart(metrics):
    module = nn.ModuleDict({"m": named(metrics)})
    stop_guessing(module)
    assert module["m"]._enable_compute_groups is False


@pytest.mark.parametrize("metrics", ALIKE.values(), ids=ALIKE)
def test_members_that_are_updated_alike_still_share_their_states(metrics):
    module = nn.ModuleDict({"m": named(metrics)})
    stop_guessing(module)
    assert module["m"]._enable_compute_groups is True


def test_groups_that_were_told_or_found_stay():
    told = MetricCollection(UNLIKE["threshold"], compute_groups=[["BinaryAccuracy"], ["BinaryPrecision"]])
    found = named(UNLIKE["threshold"])
    found.update(SCORES[:2], LABELS[:2])
    stop_guessing(nn.ModuleList([told, found]))
    assert told._enable_compute_groups == [["BinaryAccuracy"], ["BinaryPrecision"]]
    assert found._enable_compute_groups is True
