"""The values of a module's metrics by address, computed apart from the module."""

import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection, MinMaxMetric, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.regression import R2Score
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_fl_ext.metrics.computed_values import computed_values, copy_metrics
from lightning_fl_ext.metrics.discovery import named_metrics

SCORES, LABELS = torch.eye(3)[[0, 1, 1, 2]], torch.tensor([0, 1, 2, 2])


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.head = nn.ModuleDict({"layer": nn.Linear(2, 2), "loss": MeanMetric()})
        self.val = MetricCollection([MulticlassAccuracy(3), MulticlassConfusionMatrix(3)], prefix="val/")
        self.alias = self.head["loss"]


def test_metrics_alone_have_the_same_names_and_nothing_else():
    tower = Tower()
    alone = copy_metrics(tower)
    assert list(named_metrics(alone)) == list(named_metrics(tower))
    assert not list(alone.parameters())
    assert alone.alias is alone.head.loss, "a metric with two names stays one"


def test_what_happens_to_the_copy_leaves_the_module_alone():
    tower = Tower()
    tower.alias.update(3.0)
    alone = copy_metrics(tower)
    alone.alias.update(5.0)
    assert computed_values(alone)[0]["head.loss"] == 4.0
    assert float(tower.alias.compute()) == 3.0


def test_addresses_of_scalars_vectors_and_dicts():
    module = nn.ModuleDict(
        {
            "acc": MulticlassAccuracy(3, average="micro"),
            "each": MulticlassAccuracy(3, average=None),
            "named": ClasswiseWrapper(MulticlassAccuracy(3, average=None), labels=["a", "b", "c"]),
            "extremes": MinMaxMetric(MulticlassAccuracy(3, average="micro")),
            "matrix": MulticlassConfusionMatrix(3),
        }
    )
    for metric in module.values():
        metric.update(SCORES, LABELS)
    values, problems = computed_values(module)
    assert not problems
    assert values["acc"] == values["extremes[raw]"] == 0.75
    assert [values[f"each[{i}]"] for i in range(3)] == [1.0, 1.0, 0.5]
    assert [values[f"named[multiclassaccuracy_{c}]"] for c in "abc"] == [1.0, 1.0, 0.5]
    assert not any(address.startswith("matrix") for address in values)


def test_only_the_named_metrics_are_computed():
    module = nn.ModuleDict({"a": SumMetric(), "b": SumMetric()})
    for metric in module.values():
        metric.update(2.0)
    assert computed_values(module, ["b"]) == ({"b": 2.0}, {})


def test_a_composition_is_computed_from_what_its_parts_hold():
    module = nn.ModuleDict({"sum": SumMetric() + SumMetric()})
    module["sum"].metric_a.update(2.0)
    module["sum"].metric_b.update(3.0)
    assert computed_values(module)[0]["sum"] == 5.0


def test_idle_metrics_have_no_value_and_failing_ones_say_why():
    module = nn.ModuleDict({"idle": MeanMetric(), "r2": R2Score()})
    module["r2"].update(torch.ones(1), torch.ones(1))
    values, problems = computed_values(module)
    assert values == {}
    assert problems["r2"].startswith("ValueError: Needs at least two samples")


def test_a_value_computed_before_is_forgotten():
    module = nn.ModuleDict({"total": SumMetric()})
    module["total"].update(2.0)
    module["total"].compute()
    module["total"].sum_value += 1.0
    assert computed_values(module)[0] == {"total": 3.0}
