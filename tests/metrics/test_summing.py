"""Metrics as whole numbers: their sum computes what the merged states compute, or they are not summed."""

import json
from dataclasses import replace

import pytest
from _packs import packs_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics import MeanMetric, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score

from lightning_fl_ext.metrics import DamagedMetricPack, MetricPack, merge_metrics, pack_metrics
from lightning_fl_ext.metrics.checks import declared_metrics
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics
from lightning_fl_ext.metrics.summing import common_entries, read_sum, size_of, summable

pytestmark = pytest.mark.filterwarnings("ignore:.*will save all (targets|predictions)")

OTHERWISE_REDUCED = {
    *("Pearson correlation", "Pearson correlation, two outputs", "Concordance correlation", "Max", "Min"),
    "PSNR",
}
"""Metrics that count, some of whose states are reduced by something else than a sum."""


def add(clients):
    """Sum what several clients can all sum."""
    entries, _ = common_entries([list(found) for found in clients])
    columns = zip(*([n for entry in entries for n in found[entry]] for found in clients), strict=True)
    return read_sum(entries, [sum(column) for column in columns])


def stage_of(pack, names=(), scalars=()):
    return {"validate": StageMetrics(pack, dict(names), dict(scalars))}


def test_summed_states_compute_the_pooled_value_or_are_not_summed(case, assert_same):
    packs = [pack for pack in packs_of(case) if any(m.updates for m in pack.metrics.values())]
    total = add([summable({}, 1, stage_of(pack), clients=4) for pack in packs])
    merged = total.stages["validate"].pack if total.stages else MetricPack({})
    whole = merged.metrics.keys() == packs[0].metrics.keys()
    assert whole == (not case.rows and case.name not in OTHERWISE_REDUCED)
    if whole:
        own = declared_metrics(case.client())
        settings = {n: {"class_path": d.class_path, "configuration": d.configuration} for n, d in own.items()}
        merged = replace(merged, metrics={n: replace(m, **settings[n]) for n, m in merged.metrics.items()})
        value = merge_metrics(case.client(), [merged])["m"].compute()
        assert_same(value, case.client(case.pooled())["m"].compute(), 0.0 if case.exact else 1e-6)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 1000)), min_size=3, max_size=5))
def test_means_and_sums_are_those_of_all_clients(logged):
    def client(value, examples):
        scalars = {"loss": Scalar("mean", examples), "errors": Scalar("sum", examples)}
        told = {"train": StageMetrics(MetricPack({}), {}, scalars)}
        return summable({"loss": value, "errors": value}, 7, told, len(logged))

    values = add([client(*pair) for pair in logged]).values
    total = sum(examples for _, examples in logged)
    assert values["errors"] == pytest.approx(sum(value for value, _ in logged), abs=1e-9)
    assert values["loss"] == pytest.approx(sum(v * n for v, n in logged) / total, abs=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, 2.0], 1e30])
def test_what_is_no_number_that_a_sum_can_hold_is_not_summed(value):
    assert summable({"loss": value}, 3, {}, clients=5) == {}


def test_numbers_reduced_by_a_minimum_or_over_no_examples_are_not_summed():
    scalars = {"least": Scalar("min", 5), "idle": Scalar("mean", 0)}
    assert summable({"least": 1.0, "idle": 2.0}, 3, stage_of(MetricPack({}), (), scalars), 5) == {}


def test_a_metric_that_waits_for_data_is_not_summed():
    fed, waiting = (nn.ModuleDict({"m": BinaryAccuracy()}) for _ in range(2))
    fed["m"].tp += 1
    fed["m"]._update_count = 1
    packs = [pack_metrics(module, client_id=c) for c, module in (("a", fed), ("b", waiting))]
    of_fed, of_waiting = (summable({}, 1, stage_of(pack), 3) for pack in packs)
    assert len(of_fed) == 1
    assert of_waiting == {}


def test_a_name_counts_if_it_stands_for_one_value_alone_that_is_summed():
    module = nn.ModuleDict({"acc": BinaryAccuracy(), "f1": BinaryF1Score()})
    for metric in module.values():
        metric._update_count = 1
    pack = pack_metrics(module)
    names = {"val_acc": ("acc",), "either": ("acc", "f1"), "other": ("gone",)}
    found = summable({}, 1, stage_of(pack, names), 3)
    assert [json.loads(entry)[2:] for entry in found if entry.startswith('["name"')] == [["val_acc", "acc"]]


def test_what_clients_have_unlike_is_not_summed_and_its_names_are_told():
    mine, yours = '["mean", "train", "loss"]', '["mean", "train", "f1"]'
    assert common_entries([[mine, yours], [mine], [mine, "nonsense"]]) == ([mine], {"f1"})


def test_entries_tell_nothing_of_the_data():
    def entries(value):
        module = nn.ModuleDict({"mean": MeanMetric(), "sum": SumMetric()})
        for metric in module.values():
            metric.update(value)
        return list(summable({"loss": value}, 3, stage_of(pack_metrics(module)), 3))

    assert entries(1.0) == entries(12345.678)
    assert len(entries(1.0)) == 3


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '["mean"]', '["mean", "", 3]', '["median", "", "a"]', '["name", "train", "a"]'),
        *('["name", "night", "a", "b"]', '["states", "train", "m", "C", {"tp": ["object", []]}]'),
        *(
            '["states", "train", "m", "C", {"tp": ["int64", [-1]]}]',
            '["states", "train", "m", "C", {"tp": ["int64", [' + ", ".join("1" * 65) + "]]}]",
            "[" * 1000,
            '["sum", "a", "b"]',
            "[[], 1, 2]",
        ),
    ],
)
def test_what_is_no_entry_is_refused(text):
    with pytest.raises(DamagedMetricPack, match="an entry of a sum"):
        size_of(text)
    assert common_entries([[text]]) == ([], set())


@pytest.mark.parametrize("numbers", [[1, 2**80], [1, -(2**63)], [-1, 5], [2**60, 5]])
def test_counts_that_no_clients_have_together_are_refused(numbers):
    with pytest.raises(DamagedMetricPack):
        read_sum(['["states", "train", "m", "settings", {"tp": ["int64", []]}]'], numbers)


def test_a_sum_of_no_examples_is_refused():
    with pytest.raises(DamagedMetricPack, match="expected examples, got 0"):
        read_sum(['["mean", "", "loss"]'], [5, 0])
