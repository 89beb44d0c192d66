"""What is found in a module, and what is refused before any data is seen."""

import pytest
import torch
from torch import nn
from torchmetrics import (
    CatMetric,
    MeanMetric,
    MetricCollection,
    MetricTracker,
    MinMaxMetric,
    MultioutputWrapper,
    RunningMean,
    RunningSum,
    SumMetric,
)
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassROC,
)
from torchmetrics.image import RootMeanSquaredErrorUsingSlidingWindow
from torchmetrics.regression import NormalizedRootMeanSquaredError, R2Score
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper, Running
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_fl_ext.metrics import ExampleStatesNotAllowed, UnsupportedMetric, check_metrics
from lightning_fl_ext.metrics.discovery import named_metrics, own_states


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


@pytest.mark.parametrize("allowed", [("val.auroc",), ("val",), ("",)])
def test_permission_by_name_of_the_metric_or_of_what_holds_it(allowed):
    check_metrics(Model(), allow_example_states=allowed)


def test_rows_of_examples_stay_at_home_unless_allowed():
    with pytest.raises(
        ExampleStatesNotAllowed, match=r"`val.auroc` \(BinaryAUROC\) keeps one row per example"
    ) as e:
        check_metrics(Model())
    assert "`thresholds=100`" in str(e.value)
    assert 'allow_example_states=("val.auroc",)' in str(e.value)


def test_rows_in_metrics_that_are_not_selected_do_not_matter():
    check_metrics(Model(), names=("acc", "val.acc"))


def test_a_misspelt_permission_is_an_error():
    with pytest.raises(ValueError, match="`allow_example_states` names `val_auroc`, which is no metric"):
        check_metrics(Model(), allow_example_states=("val_auroc", "val.auroc"))


class GrowingTensor(MeanMetric):
    def __init__(self):
        super().__init__()
        self.add_state("seen", torch.zeros(0), dist_reduce_fx="cat")


@pytest.mark.parametrize(
    ("metric", "binned"),
    [
        (BinaryAUROC(), True),
        (MulticlassAveragePrecision(3), True),
        (MulticlassROC(3), True),
        (BinaryCalibrationError(), False),
        (RetrievalMAP(), False),
        (CatMetric(), False),
        (GrowingTensor(), False),
        (MulticlassAccuracy(3, multidim_average="samplewise"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_rows_is_seen_and_binning_offered_where_there_is_any(metric, binned):
    with pytest.raises(ExampleStatesNotAllowed) as caught:
        check_metrics(nn.ModuleDict({"m": metric}))
    assert ("thresholds" in str(caught.value)) == binned


@pytest.mark.parametrize(
    "metric", [BinaryAUROC(thresholds=20), MulticlassAccuracy(3), R2Score(), MinMaxMetric(BinaryAccuracy())]
)
def test_counts_may_leave(metric):
    check_metrics(nn.ModuleDict({"m": metric}))


class CountingWrapper(WrapperMetric):
    def __init__(self):
        super().__init__()
        self.inner = SumMetric()
        self.add_state("calls", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, *_):
        """Nothing."""

    def compute(self):
        return self.calls


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (RunningMean(), "window.*Use the wrapped metric without `Running`"),
        (RunningSum(), "window"),
        (Running(SumMetric()), "window"),
        (BootStrapper(BinaryAccuracy()), "resample.*without `BootStrapper`"),
        (MetricTracker(BinaryAccuracy()), "epoch.*tracked metric itself"),
        (NormalizedRootMeanSquaredError(), "more than two.*MeanSquaredError"),
        (RootMeanSquaredErrorUsingSlidingWindow(), "outside its states.*MeanSquaredError"),
        (CountingWrapper(), "wrapper with states of its own.*`calls`"),
        (MinMaxMetric(Running(SumMetric())), "window"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_merged_is_refused_with_what_to_use_instead(metric, message):
    if isinstance(metric, MetricTracker):
        metric.increment()
    with pytest.raises(UnsupportedMetric, match=rf"(?s)metric `m.*{message}"):
        check_metrics(nn.ModuleDict({"m": metric}))


def test_what_is_not_selected_is_not_refused():
    module = nn.ModuleDict({"loss": RunningMean(), "acc": BinaryAccuracy()})
    check_metrics(module, names=("acc",))
    with pytest.raises(UnsupportedMetric, match="`loss`"):
        check_metrics(module, names=("loss.base_metric",))
