"""Classes without examples, which torchmetrics takes for 0 in a macro mean, are named."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import (
    MulticlassAUROC,
    MulticlassAveragePrecision,
    MultilabelAUROC,
    MultilabelAveragePrecision,
)

from lightning_fl_ext import FederatedTrainer, LocalGrid, client_app
from lightning_fl_ext.server.metrics.absent import absent_classes

CASES = {
    "auroc": (MulticlassAUROC(3, thresholds=9), torch.tensor([0, 1, 1]), [2]),
    "precision": (MulticlassAveragePrecision(3, thresholds=9), torch.tensor([0, 1, 1]), [2]),
    "labels": (MultilabelAUROC(3, thresholds=9), torch.tensor([[1, 0, 1], [0, 0, 1]]), [1, 2]),
    "label precision": (
        MultilabelAveragePrecision(3, thresholds=9),
        torch.tensor([[1, 0, 1], [0, 0, 1]]),
        [1],
    ),
    "all there": (MulticlassAUROC(3, thresholds=9), torch.tensor([0, 1, 2]), None),
    "weighted": (MulticlassAUROC(3, thresholds=9, average="weighted"), torch.tensor([0, 1, 1]), None),
    "by class": (MulticlassAUROC(3, thresholds=9, average=None), torch.tensor([0, 1, 1]), None),
    "rows": (MulticlassAUROC(3), torch.tensor([0, 1, 1]), None),
}


@pytest.mark.parametrize("case", CASES)
def test_classes_are_named_that_count_as_0(case):
    metric, target, expected = CASES[case]
    module = nn.ModuleDict({"m": metric.clone()})
    assert absent_classes(module) == {}
    module["m"].update(torch.eye(3)[: len(target)] * 0.8 + 0.1, target)
    assert absent_classes(module) == ({"m": expected} if expected else {})


class Lit(L.LightningModule):
    """Tells its three classes apart without fail."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.auroc = MulticlassAUROC(3, thresholds=20)

    def training_step(self, batch, _):
        return self.layer(batch[0]).square().sum()

    def validation_step(self, batch, _):
        self.auroc.update(batch[0], batch[1])
        self.log("auroc", self.auroc)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


@pytest.mark.parametrize("classes", [3, 2])
def test_a_federation_that_lacks_a_class_says_so_once(caplog, classes):
    def data(_):
        y = torch.arange(6) % classes
        return DataLoader(TensorDataset(0.1 + 0.8 * torch.eye(3)[y], y), batch_size=6)

    trainer = FederatedTrainer(max_rounds=2, enable_progress_bar=False)
    trainer.fit(Lit, LocalGrid(client_app(Lit, data, {"accelerator": "cpu"}), 3))
    said = [record.getMessage() for record in caplog.records if "metric `auroc`" in record.getMessage()]
    assert trainer.callback_metrics["auroc"] == pytest.approx(classes / 3)
    assert len(said) == 3 - classes
    assert all("for class(es) `2`" in text and "`average='weighted'`" in text for text in said)
