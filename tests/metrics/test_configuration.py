"""What two machines compare of a metric."""

import functools
import json

import pytest
import torch
from torchmetrics import MaxMetric, MinMaxMetric, SumMetric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassAveragePrecision,
    MulticlassFBetaScore,
)
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import PearsonCorrCoef
from torchmetrics.text import SacreBLEUScore, TranslationEditRate
from torchmetrics.wrappers import BinaryTargetTransformer

from lightning_fl_ext.metrics.configuration import class_path, configuration, reduction_name

pytestmark = pytest.mark.filterwarnings("ignore:.*will save all (targets|predictions)")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BinaryAccuracy(0.5), BinaryAccuracy(0.4)),
        (BinaryAccuracy(), BinaryAccuracy(ignore_index=0)),
        (MulticlassAccuracy(3), MulticlassAccuracy(5)),
        (MulticlassAccuracy(3), MulticlassAccuracy(3, average="micro")),
        (MulticlassAccuracy(3), MulticlassAccuracy(3, top_k=2)),
        (MulticlassFBetaScore(1.0, 3), MulticlassFBetaScore(2.0, 3)),
        (BinaryAUROC(thresholds=50), BinaryAUROC(thresholds=20)),
        (BinaryAUROC(thresholds=[0.1, 0.5]), BinaryAUROC(thresholds=[0.1, 0.6])),
        (BinaryAUROC(), BinaryAUROC(thresholds=20)),
        (
            MulticlassAveragePrecision(3, thresholds=5),
            MulticlassAveragePrecision(3, "weighted", thresholds=5),
        ),
        (PearsonCorrCoef(1), PearsonCorrCoef(2)),
        (PeakSignalNoiseRatio(1.0), PeakSignalNoiseRatio(255.0)),
        (PeakSignalNoiseRatio((0.0, 1.0)), PeakSignalNoiseRatio((0.5, 1.5))),
        (BinaryTargetTransformer(SumMetric(), 0.1), BinaryTargetTransformer(SumMetric(), 0.2)),
        (SumMetric(), SumMetric().set_dtype(torch.float64)),
        (SacreBLEUScore(tokenize="13a"), SacreBLEUScore(tokenize="char")),
        (SacreBLEUScore(), SacreBLEUScore(lowercase=True)),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_different_arguments_give_different_configurations(one, other):
    assert configuration(one) != configuration(other)


def test_updates_copies_devices_and_modes_do_not_change_it(case):
    metrics = [
        (fresh, used)
        for fresh, used in zip(
            case.client().modules(), case.client(case.pooled()).eval().to("cpu").modules(), strict=True
        )
        if hasattr(fresh, "_defaults")
    ]
    assert metrics
    for fresh, used in metrics:
        used.compute()
        assert configuration(fresh) == configuration(used) == configuration(fresh.clone())
        assert all(isinstance(json.loads(value), object) for value in configuration(used).values())


def test_text_metrics_that_fill_in_none_at_their_first_update_keep_their_configuration():
    used = TranslationEditRate()
    used.update(["a b"], [["a c"]])
    assert configuration(used) == configuration(TranslationEditRate())


def test_the_results_a_wrapper_keeps_are_not_configuration():
    wrapper = MinMaxMetric(SumMetric())
    before = configuration(wrapper)
    wrapper.update(3.0)
    wrapper.compute()
    assert configuration(wrapper) == before


def scale(values):
    return values


class Odd(SumMetric):
    """Arguments of every kind."""

    def __init__(self, **settings):
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)


class Settings:
    def __init__(self, depth):
        self.depth = depth
        self.itself = self


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), '"nan"'),
        (float("-inf"), '"-inf"'),
        ((1, (2.5, "x")), '[1, [2.5, "x"]]'),
        ({3, 1, 2}, "[1, 2, 3]"),
        ({1: {"b": None}}, '{"1": {"b": null}}'),
        (torch.float16, '"torch.float16"'),
        (torch.tensor(2), '"int64[] = 2"'),
        (torch.tensor([True]), '"bool[1] = True"'),
        (sum, '"builtins.sum"'),
    ],
    ids=str,
)
def test_values_become_plain_text(value, text):
    assert configuration(Odd(option=value))["option"] == text


def test_functions_and_objects_are_told_by_name_without_addresses():
    described = configuration(
        Odd(function=scale, partial=functools.partial(scale, 3, a=(1,)), settings=Settings(7))
    )
    assert described["function"].endswith('.scale"')
    assert json.loads(described["partial"])[1:] == [[3], {"a": [1]}]
    assert json.loads(described["settings"])["depth"] == 7
    assert "0x" not in json.dumps(described)


def test_tensors_are_told_by_dtype_shape_and_content():
    texts = {
        configuration(Odd(option=value))["option"]
        for value in (
            torch.zeros(3),
            torch.zeros(3, dtype=torch.float64),
            torch.zeros(3, 1),
            torch.tensor([0.0, 0.0, 1.0]),
            torch.zeros(3, dtype=torch.bfloat16),
            torch.zeros(0),
        )
    }
    assert len(texts) == 6


def test_private_and_runtime_attributes_are_not_told():
    described = configuration(Odd(_seen=1, device_of_choice=torch.device("cpu")))
    assert set(described) == {"nan_strategy", "state_name", "state sum_value"}
    assert described == configuration(SumMetric(sync_on_compute=False, compute_with_cache=False))


def test_what_deepspeed_hangs_on_every_module_is_not_told():
    hung = {"ds_id": 3, "ds_grads_remaining": 0, "all_parameters": len, "pre_bwd_fn": object}
    assert configuration(Odd(**hung)) == configuration(SumMetric())
    assert "ds_grads_remaining" in configuration(Odd(ds_grads_remaining=0)), "a metric's own"


def test_class_and_reductions_have_their_names():
    assert class_path(MaxMetric()) == "torchmetrics.aggregation.MaxMetric"
    assert reduction_name(BinaryAccuracy(), "tp") == "sum"
    assert reduction_name(PearsonCorrCoef(), "mean_x") == "none"
    assert reduction_name(BinaryAUROC(), "preds") == "cat"
