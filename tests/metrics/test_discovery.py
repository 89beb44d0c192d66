"""What is found in a module."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchmetrics import MeanMetric, MetricCollection, MultioutputWrapper, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAccuracy
from torchmetrics.regression import R2Score
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_fl_ext.metrics.discovery import hidden_metrics, named_metrics, own_states, weights_of


class Model(nn.Module):
    """Metrics in every place a user may put them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.acc = BinaryAccuracy()
        self.val = MetricCollection({"acc": BinaryAccuracy(), "auroc": BinaryAUROC()}, prefix="val/")
        self.inner = nn.ModuleList([nn.ModuleDict({"loss": MeanMetric()})])
        self.wrapped = ClasswiseWrapper(MulticlassAccuracy(3, average=None))
        self.outputs = MultioutputWrapper(R2Score(), 2)
        self.composed = MeanMetric() + SumMetric()
        self.alias = self.acc


def test_every_metric_is_found_once_under_its_module_name():
    assert list(named_metrics(Model())) == [
        "acc",
        "val.acc",
        "val.auroc",
        "inner.0.loss",
        "wrapped",
        "wrapped.metric",
        "outputs",
        "outputs.metrics.0",
        "outputs.metrics.1",
        "composed",
        "composed.metric_a",
        "composed.metric_b",
    ]


def test_states_are_those_of_the_inner_metrics_alone():
    metrics = named_metrics(Model())
    assert not any(own_states(metrics[name]) for name in ("wrapped", "outputs", "composed"))
    assert own_states(metrics["wrapped.metric"]) == ("tp", "fp", "tn", "fn")


def test_names_select_metrics_and_whole_collections():
    assert list(named_metrics(Model(), ["val", "acc"])) == ["acc", "val.acc", "val.auroc"]
    with pytest.raises(ValueError, match=r"`names` names `va`, which is no metric.*`val.acc`"):
        named_metrics(Model(), ["va"])


def test_excluded_metrics_and_whole_collections_are_not_selected():
    assert list(named_metrics(Model(), ["val", "acc"], ["val.auroc"])) == ["acc", "val.acc"]
    assert not {"val.acc", "val.auroc", "wrapped", "wrapped.metric"} & set(
        named_metrics(Model(), None, ["val", "wrapped"])
    )
    with pytest.raises(ValueError, match=r"`exclude_metrics` names `va`, which is no metric.*`val.acc`"):
        named_metrics(Model(), None, ["va"])


def test_metrics_in_plain_containers_are_hidden_and_told_by_the_name_of_what_holds_them():
    module = Model()
    module.losses = {"train": MeanMetric(), "val": 3}
    module.inner[0].pair = (BinaryAccuracy(), None)
    module.layer.several = [MetricCollection([BinaryAccuracy()])]
    module.numbers, module.names = [1, 2], {"a": "b"}
    assert hidden_metrics(module) == ["losses", "layer.several", "inner.0.pair"]
    assert hidden_metrics(Model()) == []


class Gathered(nn.ModuleDict):
    def state_dict(self, *arguments, **options):
        raise AssertionError("FSDP1 would take this module for the outermost one")


def test_what_is_gathered_from_a_wrapped_module_is_told_apart_and_the_module_is_not_asked():
    layer = nn.ModuleDict({"linear": nn.Linear(1, 1), "seen": MeanMetric(), "learned": MeanMetric()})
    layer["learned"].scale = nn.Parameter(torch.ones(1))
    layer["seen"].persistent(True)
    state = {f"layer.{name}": value for name, value in layer.state_dict().items()}
    module = Gathered({"layer": checkpoint_wrapper(layer)})
    weights = weights_of(module, state)
    assert [name for name, value in weights.items() if value is None] == [
        "layer.seen.mean_value",
        "layer.seen.weight",
    ]
    assert list(weights) == list(state)


def test_a_text_is_no_tuple_of_names():
    with pytest.raises(TypeError, match=r"`names` must be a tuple of names: `names=\(\"val\",\)`. Got 'val'"):
        named_metrics(Model(), "val")
    with pytest.raises(TypeError, match=r"`exclude_metrics` must be a tuple of names: texts\. Got"):
        named_metrics(Model(), None, [3])
