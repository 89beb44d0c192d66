"""What cannot be merged is refused by client and metric, and changes nothing."""

import numpy as np
import pytest
import torch
from _packs import pack_of
from torch import nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import NormalizedRootMeanSquaredError

from lightning_fl_ext.metrics import (
    MetricMismatch,
    MetricPack,
    MetricStates,
    UnsupportedMetric,
    merge_metrics,
    pack_metrics,
)
from lightning_fl_ext.metrics.configuration import class_path, configuration

pytestmark = pytest.mark.filterwarnings("ignore:.*will save all (targets|predictions)")


@pytest.fixture
def server():
    module = nn.ModuleDict({"m": MulticlassAccuracy(3), "n": SumMetric()})
    module["n"].update(42.0)
    return module


def client(accuracy=None, total=None, client_id="a"):
    module = nn.ModuleDict({"m": accuracy or MulticlassAccuracy(3), "n": total or SumMetric()})
    module["m"].update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    module["n"].update(1.0)
    return pack_metrics(module, client_id=client_id)


def with_states(pack, **states):
    metric = pack.metrics["m"]
    changed = MetricStates(
        metric.class_path, metric.configuration, metric.updates, {**metric.states, **states}
    )
    return MetricPack({**pack.metrics, "m": changed}, pack.client_id)


REFUSED = {
    "the same client twice": (lambda: [client(), client()], "client 'a' handed in two packs", None),
    "other class": (
        lambda: [client(MulticlassF1Score(3))],
        r"client 'a', metric `m` \(MulticlassAccuracy\): other class .* got .*MulticlassF1Score",
        "m",
    ),
    "other number of classes": (
        lambda: [client(MulticlassAccuracy(5))],
        r"(?s)client 'a', metric `m`.*num_classes: expected 3, got 5",
        "m",
    ),
    "other shape than the others": (
        lambda: [client(client_id="z"), with_states(client(), tp=np.zeros((2, 2), np.int64))],
        r"client 'a', metric `m`.*`tp`: expected shape \[3\], got \[2, 2\]",
        "m",
    ),
    "count beyond any data": (
        lambda: [
            with_states(client(client_id=name), tp=np.full(3, 2**62, np.int64)) for name in ("a", "b", "c")
        ],
        r"metric `m` .*`tp`: got a count beyond 2\^53",
        "m",
    ),
}


@pytest.mark.parametrize(("packs", "message", "metric"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(server, packs, message, metric):
    before = {name: {k: v.clone() for k, v in server[name].metric_state.items()} for name in ("m", "n")}
    with pytest.raises(MetricMismatch, match=message) as caught:
        merge_metrics(server, packs())
    assert caught.value.metric == metric
    for name, states in before.items():
        for state, value in states.items():
            assert torch.equal(server[name].metric_state[state], value)


def test_clients_that_disagree_on_a_broadcast_shape_are_judged_by_the_majority():
    def grown(client_id, outputs):
        metric = SumMetric()
        metric.update(1.0)
        metric.sum_value = torch.zeros(outputs) if outputs else metric.sum_value
        return pack_of(metric, client_id)

    packs = [grown("a", 3), grown("b", 0), grown("c", 0)]
    with pytest.raises(
        MetricMismatch, match=r"client 'a'.*expected float32\[\] as from most clients.*float32\[3\]"
    ):
        merge_metrics(nn.ModuleDict({"m": SumMetric()}), packs)


def test_a_client_that_packed_other_metrics_is_named():
    packs = [client(client_id=name) for name in ("a", "b")]
    packs.append(pack_metrics(nn.ModuleDict({"n": SumMetric()}), client_id="c"))
    server = nn.ModuleDict({"m": MulticlassAccuracy(3), "n": SumMetric()})
    with pytest.raises(
        MetricMismatch, match=r"client 'c' lacks the metric `m`, which most clients sent"
    ) as caught:
        merge_metrics(server, packs)
    assert (caught.value.client_id, caught.value.metric) == ("c", "m")


def test_a_client_that_packed_more_than_most_is_named():
    packs = [pack_metrics(nn.ModuleDict({"n": SumMetric()}), client_id=name) for name in ("b", "c")]
    packs.append(client())
    server = nn.ModuleDict({"m": MulticlassAccuracy(3), "n": SumMetric()})
    with pytest.raises(
        MetricMismatch, match=r"client 'a' sent the metric `m`, which most clients lack"
    ) as caught:
        merge_metrics(server, packs)
    assert caught.value.client_id == "a"


def test_the_server_refuses_metrics_that_cannot_be_merged():
    metric = NormalizedRootMeanSquaredError()
    pack = MetricPack({"m": MetricStates(class_path(metric), configuration(metric), 0, {})}, "a")
    with pytest.raises(UnsupportedMetric, match=r"metric `m` \(NormalizedRootMeanSquaredError\)"):
        merge_metrics(nn.ModuleDict({"m": metric}), [pack])


def test_nrmse_is_still_broken_upstream_above_two_sets_of_states():
    """The refusal can go once this fails."""
    parts = [NormalizedRootMeanSquaredError() for _ in range(3)]
    for part in parts:
        part.update(torch.randn(9), torch.randn(9))
    merged = NormalizedRootMeanSquaredError()
    merged._update_count = 3
    for state, reduction in merged._reductions.items():
        stacked = torch.stack([getattr(part, state) for part in parts])
        setattr(merged, state, stacked if reduction is None else reduction(stacked))
    with pytest.raises(IndexError):
        merged.compute()


class Unreduced(SumMetric):
    def __init__(self):
        super().__init__()
        self._reductions["sum_value"] = no_reduction


def no_reduction(stacked):
    raise ZeroDivisionError("nothing to divide by")


def test_a_reduction_that_raises_is_named_with_its_metric():
    packs = []
    for client in "ab":
        metric = Unreduced()
        metric.update(1.0)
        packs.append(pack_of(metric, client))
    message = (
        r"^metric `m` \(Unreduced\), state `sum_value`, reduced by .*no_reduction: ZeroDivisionError: nothing"
    )
    with pytest.raises(MetricMismatch, match=message) as caught:
        merge_metrics(nn.ModuleDict({"m": Unreduced()}), packs)
    assert (caught.value.client_id, caught.value.metric) == (None, "m")
