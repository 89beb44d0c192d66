"""Metrics count in their own dtype, whatever the precision of the Trainer that converts the module."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAUROC

from lightning_fl_ext import FederatedTrainer, FlowerBridge, LocalGrid, client_app

PRECISIONS = ["bf16-true", "16-true", "64-true"]
pytestmark = pytest.mark.filterwarnings("ignore:.*-true.*")


def scores(n):
    """Labels, and scores that half precision holds exactly."""
    k = torch.arange(n)
    return TensorDataset((k % 97 / 128)[:, None], (torch.sin(7.0 * k) > 1 - k % 97 / 50).int())


@pytest.fixture
def measured(kit):
    class Measured(kit.Lit):
        """Measures the same in validation, with and without layers that the Trainer converts."""

        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()
            self.auroc = BinaryAUROC(thresholds=600)
            self.both = MetricCollection({"mse": MeanSquaredError(), "rmse": MeanSquaredError(squared=False)})

        def training_step(self, batch, _):
            return self.layer.weight.square().sum()

        def validation_step(self, batch, _):
            x, y = batch[0][:, 0], batch[1]
            self.mean.update(1.5)
            self.auroc.update(x, y)
            self.both.update(torch.zeros(len(x)), torch.ones(len(x)))
            self.log_dict({"mean": self.mean, "auroc": self.auroc})
            self.log_dict(self.both)

    return Measured


def values(kit, measured, precision, runs):
    module, data = measured(), DataLoader(scores(300), batch_size=1)
    for run in runs:
        trainer = kit.trainer(FlowerBridge(), precision=precision)
        trainer.fit(module, data, data) if run == "fit" else trainer.validate(module, data, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("runs", [["fit"], ["fit", "validate"]], ids="-".join)
def test_their_values_are_those_of_single_precision(kit, measured, runs, precision):
    found = values(kit, measured, precision, runs)
    assert found == pytest.approx(values(kit, measured, "32-true", runs), rel=1e-6)
    assert found["mean"] == 1.5
    assert found["mse"] == found["rmse"] == 1.0


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_their_pooled_values_are_those_of_single_precision(measured, precision):
    def pooled(precision):
        def data(context):
            return DataLoader(scores(270 + 7 * int(context.node_config["partition-id"])), batch_size=1)

        app = client_app(measured, data, {"accelerator": "cpu", "precision": precision})
        trainer = FederatedTrainer(max_rounds=1, enable_progress_bar=False)
        trainer.fit(measured, LocalGrid(app, 2))
        return {name: trainer.callback_metrics[name] for name in ("mean", "auroc", "mse", "rmse")}

    assert pooled(precision) == pytest.approx(pooled("32-true"), rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_metrics_made_under_half_precision_count_in_single(kit, precision):
    class Late(kit.Lit):
        def configure_model(self):
            self.mean = MeanMetric()

        def training_step(self, batch, _):
            self.mean(1.5)
            self.log("mean", self.mean, on_epoch=True, on_step=False)
            return self.layer.weight.square().sum()

    trainer = kit.trainer(FlowerBridge(), precision=precision)
    trainer.fit(Late(), DataLoader(scores(300), batch_size=1))
    assert trainer.callback_metrics["mean"] == 1.5


def test_a_dtype_that_was_asked_for_stays(kit, measured):
    module = measured()
    module.mean.set_dtype(torch.float64)
    kit.trainer(FlowerBridge(), precision="bf16-true").fit(
        module, DataLoader(scores(10)), DataLoader(scores(10))
    )
    assert module.mean.mean_value.dtype == torch.float64
    assert module.both["mse"].sum_squared_error.dtype == torch.float32
    assert module.layer.weight.dtype == torch.bfloat16
