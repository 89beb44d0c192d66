"""One client's pack against the server's module."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MaxMetric, MeanMetric, SumMetric
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import ExplainedVariance, PearsonCorrCoef

from lightning_fl_ext.metrics import MetricMismatch, MetricPack, MetricStates, check_pack, pack_metrics


def wrap(metric):
    return nn.ModuleDict({"m": metric})


def sent(metric, *batches, **states):
    """The pack of client "a" after `batches`, with some states replaced."""
    for batch in batches:
        metric.update(*batch)
    pack = pack_metrics(wrap(metric), client_id="a", allow_example_states=("m",))
    was = pack.metrics["m"]
    changed = {**was.states, **states}
    now = MetricStates(
        was.class_path, was.configuration, was.updates, {k: v for k, v in changed.items() if v is not None}
    )
    return MetricPack({"m": now}, "a")


labels = (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
scores = (torch.tensor([0.2, 0.8]), torch.tensor([0, 1]))
pairs = (torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 3.0]))


@pytest.mark.parametrize(
    ("metric", "batch"),
    [
        (MulticlassAccuracy(3), labels),
        (BinaryAUROC(thresholds=5), scores),
        (BinaryAUROC(), scores),
        (PearsonCorrCoef(), pairs),
        (MaxMetric(), (torch.tensor(float("-inf")),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_pack_of_the_same_metric_fits(metric, batch):
    check_pack(wrap(metric.clone()), sent(metric, batch))


def test_an_idle_pack_fits():
    check_pack(wrap(MulticlassAccuracy(3)), sent(MulticlassAccuracy(3)))


def test_states_that_the_first_update_broadcast_fit():
    outputs = (torch.randn(4, 2), torch.randn(4, 2))
    check_pack(wrap(ExplainedVariance()), sent(ExplainedVariance(), outputs))


REFUSED = {
    "class": (MulticlassAccuracy(3), lambda: sent(MulticlassF1Score(3), labels), "other class.*F1Score"),
    "classes": (
        MulticlassAccuracy(3),
        lambda: sent(MulticlassAccuracy(5), labels),
        r"num_classes: expected 3, got 5\n.*state fn: expected .*int64\[3\].*got .*int64\[5\]",
    ),
    "thresholds": (
        BinaryAUROC(thresholds=50),
        lambda: sent(BinaryAUROC(thresholds=20), scores),
        r"thresholds: expected \"float32\[50\].*got \"float32\[20\]",
    ),
    "binned against exact": (
        BinaryAUROC(thresholds=50),
        lambda: sent(BinaryAUROC(), scores),
        r"thresholds: expected \"float32\[50\].*got nothing",
    ),
    "state missing": (
        MulticlassAccuracy(3),
        lambda: sent(MulticlassAccuracy(3), labels, tp=None),
        r"expected the states \['fn', 'fp', 'tn', 'tp'\], got \['fn', 'fp', 'tn'\]",
    ),
    "state too many": (SumMetric(), lambda: sent(SumMetric(), (1.0,), x=np.zeros(1)), "got .*'x'"),
    "shape": (
        MulticlassAccuracy(3),
        lambda: sent(MulticlassAccuracy(3), labels, tp=np.zeros(4, np.int64)),
        r"state `tp`: expected shape \[3\], got \[4\]",
    ),
    "floats for counts": (
        MulticlassAccuracy(3),
        lambda: sent(MulticlassAccuracy(3), labels, tp=np.zeros(3)),
        "state `tp`: expected integer numbers, got float64",
    ),
    "list for a tensor": (
        MulticlassAccuracy(3),
        lambda: sent(MulticlassAccuracy(3), labels, tp=(np.zeros(3, np.int64),)),
        "state `tp`: expected a tensor",
    ),
    "tensor for a list": (
        BinaryAUROC(),
        lambda: sent(BinaryAUROC(), scores, preds=np.zeros(2, np.float32)),
        "state `preds`: expected a list",
    ),
    "no process axis": (
        PearsonCorrCoef(),
        lambda: sent(PearsonCorrCoef(), pairs, mean_x=np.float32(1)),
        "state `mean_x`: expected shape",
    ),
    "NaN sum": (
        SumMetric(),
        lambda: sent(SumMetric(), (1.0,), sum_value=np.float32("nan")),
        "`sum_value`: got NaN",
    ),
    "NaN row": (
        BinaryAUROC(),
        lambda: sent(BinaryAUROC(), scores, preds=(np.float32([1, np.nan]),)),
        "`preds`: got NaN",
    ),
    "infinite sum": (
        MeanMetric(),
        lambda: sent(MeanMetric(), (1.0,), weight=np.float32("inf")),
        "`weight`: got an infinite number",
    ),
}


@pytest.mark.parametrize(("metric", "pack", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_client_metric_and_difference(metric, pack, message):
    with pytest.raises(MetricMismatch, match=f"(?s)^client 'a', metric `m` .*{message}") as caught:
        check_pack(wrap(metric), pack())
    assert (caught.value.client_id, caught.value.metric) == ("a", "m")


def test_a_metric_the_server_lacks_is_refused():
    with pytest.raises(MetricMismatch, match=r"client 'a': .* no metric 'm'. It has \['n'\]"):
        check_pack(nn.ModuleDict({"n": SumMetric()}), sent(SumMetric()))


def test_a_client_without_id_is_told_by_its_digest():
    pack = MetricPack(sent(SumMetric()).metrics)
    with pytest.raises(MetricMismatch, match=rf"client without id \({pack.digest[:12]}\)"):
        check_pack(wrap(MeanMetric()), pack)
