"""What is refused before any data is seen."""

import pytest
import torch
from torch import nn
from torchmetrics import (
    CatMetric,
    MeanMetric,
    MetricCollection,
    MetricTracker,
    MinMaxMetric,
    RunningMean,
    RunningSum,
    SumMetric,
)
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryCalibrationError,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassROC,
)
from torchmetrics.image import RootMeanSquaredErrorUsingSlidingWindow
from torchmetrics.regression import NormalizedRootMeanSquaredError, R2Score
from torchmetrics.retrieval import RetrievalMAP
from torchmetrics.wrappers import BootStrapper, Running
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_fl_ext.metrics import ExampleStatesNotAllowed, UnsupportedMetric, check_metrics


class Model(nn.Module):
    """One metric that keeps rows, in a collection, and a composition with an operand of a name of its own."""

    def __init__(self):
        super().__init__()
        self.acc = BinaryAccuracy()
        self.val = MetricCollection({"acc": BinaryAccuracy(), "auroc": BinaryAUROC()}, prefix="val/")
        self.precision = BinaryPrecision()
        self.sum = self.precision + BinaryRecall()


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


REFUSED = [
    (RunningMean(), "window.*Use the wrapped metric without `Running`"),
    (RunningSum(), "window"),
    (Running(SumMetric()), "window"),
    (BootStrapper(BinaryAccuracy()), "resample.*without `BootStrapper`"),
    (MetricTracker(BinaryAccuracy()), "epoch.*tracked metric itself"),
    (NormalizedRootMeanSquaredError(), "more than two.*MeanSquaredError"),
    (RootMeanSquaredErrorUsingSlidingWindow(), "outside its states.*MeanSquaredError"),
    (CountingWrapper(), "wrapper with states of its own.*`calls`"),
    (MinMaxMetric(Running(SumMetric())), "window"),
]


@pytest.mark.parametrize(("metric", "message"), REFUSED, ids=lambda value: type(value).__name__)
def test_what_cannot_be_merged_is_refused_with_what_to_use_instead(metric, message):
    if isinstance(metric, MetricTracker):
        metric.increment()
    with pytest.raises(UnsupportedMetric, match=rf"(?s)metric `m.*{message}.*exclude_metrics=\(\"m"):
        check_metrics(nn.ModuleDict({"m": metric}))


@pytest.mark.parametrize(
    "metric", [*(metric for metric, _ in REFUSED), BinaryAUROC()], ids=lambda value: type(value).__name__
)
def test_what_is_left_out_by_name_is_not_refused(metric):
    module = nn.ModuleDict({"m": metric, "acc": BinaryAccuracy()})
    check_metrics(module, exclude_metrics=("m",))


def test_a_member_of_a_collection_can_be_left_out_alone():
    check_metrics(Model(), exclude_metrics=("val.auroc",))


@pytest.mark.parametrize(("out", "stays"), [("precision", "sum"), ("sum", "precision")])
def test_a_metric_is_left_out_with_all_that_is_computed_from_it_or_that_it_is_computed_from(out, stays):
    """The other clients' part of the composition would be mixed with this client's part of the operand."""
    allowed = {"allow_example_states": ("val",)}
    message = f"leaves out `{out}`, but not `{stays}`; and `sum` is computed from `precision`"
    with pytest.raises(ValueError, match=message):
        check_metrics(Model(), exclude_metrics=(out,), **allowed)
    check_metrics(Model(), exclude_metrics=(out, stays), **allowed)


def test_a_part_of_a_wrapper_cannot_be_left_out_alone():
    module = nn.ModuleDict({"m": MinMaxMetric(BinaryAccuracy())})
    with pytest.raises(ValueError, match=r"leaves out `m\._base_metric`, but not `m`"):
        check_metrics(module, exclude_metrics=("m._base_metric",))


@pytest.mark.parametrize("argument", ["allow_example_states", "exclude_metrics", "names"])
def test_a_text_where_names_are_meant_is_an_error(argument):
    with pytest.raises(TypeError, match=rf"`{argument}` must be a tuple of names"):
        check_metrics(Model(), **{argument: "val"})


def test_a_misspelt_exclusion_is_an_error():
    with pytest.raises(ValueError, match="`exclude_metrics` names `val_auroc`, which is no metric"):
        check_metrics(Model(), exclude_metrics=("val_auroc", "val.auroc"))


def test_a_metric_without_a_name_is_not_told_by_an_empty_one():
    with pytest.raises(ExampleStatesNotAllowed, match=r"^metric \(BinaryAUROC\) keeps") as caught:
        check_metrics(BinaryAUROC())
    assert "exclude_metrics" not in str(caught.value)


def test_what_is_not_selected_is_not_refused():
    module = nn.ModuleDict({"loss": RunningMean(), "acc": BinaryAccuracy()})
    check_metrics(module, names=("acc",))
    with pytest.raises(UnsupportedMetric, match="`loss`"):
        check_metrics(module, names=("loss.base_metric",))
