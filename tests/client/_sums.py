"""A module whose metrics are sums of its data, and fits of it."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MaxMetric, SumMetric

from lightning_fl_ext import FlowerBridge
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics
from lightning_fl_ext.server.metrics.pooling import pool_metrics

TRAIN, VALIDATION = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([10.0, 20, 30, 40, 50])


class Sums(L.LightningModule):
    """Its metrics are sums of the data, so that what they have seen can be read off them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = SumMetric()
        self.trained = SumMetric()

    def training_step(self, batch, _):
        self.trained(batch[0])
        self.log("train_sum", self.trained, on_step=False, on_epoch=True)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen(batch[0])
        self.log("val_sum", self.seen)

    def test_step(self, batch):
        self.seen(batch[0])
        self.log("test_sum", self.seen)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class LogsLargest:
    """Mixed in before `Sums`: another metric, logged by value and reset by hand."""

    def __init__(self):
        super().__init__()
        self.largest = MaxMetric()

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.largest.update(batch[0])

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val_max", self.largest.compute())
        self.largest.reset()


def loader(values):
    return DataLoader(TensorDataset(values), 2)


@pytest.fixture
def bridge_of(kit):
    def make(module, kind="train", ask=True, **options):
        message = kit.message(kit.arrays_of(module), kind)
        if ask:
            message.content["config"][METRIC_STATES] = True
        return FlowerBridge.from_message(message, kit.context(), **options)

    return make


@pytest.fixture(name="fit")
def fit_sums(kit, bridge_of):
    """Fit and read the reply: stages by name, the pooled values, and the plain metrics."""

    def run(module, val=(VALIDATION,), ask=True, bridge=None, **options):
        bridge = bridge or bridge_of(module, ask=ask)
        loaders = [loader(values) for values in val]
        kit.trainer(bridge, **{"num_sanity_val_steps": 0, **options}).fit(module, loader(TRAIN), loaders)
        content = bridge.reply().content
        stages = {
            s: StageMetrics.from_bytes(b, client_id="0") for s, b in content.get(METRIC_STATES, {}).items()
        }
        values, left_out = pool_metrics(type(module)(), {"0": stages}, 1)
        assert not left_out
        return stages, values, dict(content["metrics"])

    return run
