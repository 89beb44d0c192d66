"""What a client puts into its pack."""

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import CatMetric, MeanMetric, Metric, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC
from torchmetrics.regression import PearsonCorrCoef

from lightning_fl_ext.metrics import (
    ExampleStatesNotAllowed,
    UnsupportedMetric,
    pack_metrics,
    sync_and_pack,
)


@pytest.fixture(params=[pack_metrics, sync_and_pack])
def pack(request):
    """Both functions do the same in one process."""
    return request.param


ONE = (torch.tensor([0.3]), torch.tensor([0]))


def updated(metric, *batch):
    metric.update(*batch)
    return metric


def test_a_pack_holds_class_configuration_updates_and_states(pack):
    metric = BinaryAccuracy()
    metric.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    metric.update(torch.tensor([1]), torch.tensor([1]))
    packed = pack(nn.ModuleDict({"acc": metric}), client_id="a", num_examples=3)
    assert (packed.client_id, packed.num_examples, packed.withheld) == ("a", 3, False)
    sent = packed.metrics["acc"]
    assert sent.class_path == "torchmetrics.classification.accuracy.BinaryAccuracy"
    assert sent.configuration["threshold"] == "0.5"
    assert sent.updates == 2
    assert {name: value.tolist() for name, value in sent.states.items()} == {
        "tp": [2],
        "fp": [0],
        "tn": [0],
        "fn": [1],
    }
    assert {value.dtype for value in sent.states.values()} == {np.dtype("int64")}


def test_forward_counts_like_update(pack):
    metric = BinaryAccuracy()
    metric(torch.tensor([1, 0]), torch.tensor([1, 1]))
    assert pack(metric).metrics[""].updates == 1
    assert pack(metric).metrics[""].states["tp"].tolist() == [1]


def test_an_idle_metric_is_named_but_sends_nothing(pack):
    assert pack(nn.ModuleDict({"m": SumMetric()})).metrics["m"].states == {}


def test_states_are_copies(pack):
    metric = updated(SumMetric(), 1.0)
    packed = pack(metric)
    metric.sum_value += 5.0
    assert packed.metrics[""].states["sum_value"] == 1.0


def test_states_with_the_reduction_none_get_an_axis_over_processes(pack):
    metric = updated(PearsonCorrCoef(2), torch.randn(5, 2), torch.randn(5, 2))
    assert pack(metric).metrics[""].states["mean_x"].shape == (1, 2)


def test_lists_keep_their_elements_in_one_dtype(pack):
    metric = updated(updated(CatMetric(), torch.tensor([1.0, 2.0])), 3.0)
    metric.value.append(torch.tensor([4.0], dtype=torch.float64))
    sent = pack(metric, allow_example_states=("",)).metrics[""].states["value"]
    assert [element.tolist() for element in sent] == [[1.0, 2.0], 3.0, [4.0]]
    assert {element.dtype for element in sent} == {np.dtype("float64")}


def test_what_is_excluded_is_named_and_not_packed(pack):
    module = nn.ModuleDict({"auroc": updated(BinaryAUROC(), *ONE), "acc": updated(BinaryAccuracy(), *ONE)})
    packed = pack(module, exclude_metrics=("auroc",))
    assert packed.excluded == ("auroc",)
    assert list(packed.metrics) == ["acc"]


def test_a_withheld_pack_names_what_is_excluded_besides(pack):
    module = nn.ModuleDict({"auroc": BinaryAUROC()})
    packed = pack(module, exclude_metrics=("auroc",), num_examples=1, min_examples=2)
    assert packed.withheld
    assert packed.excluded == ("auroc",)


def test_counts_of_any_whole_number_type_are_taken(pack):
    packed = pack(SumMetric(), num_examples=np.int64(7), min_examples=torch.tensor(3))
    assert (packed.num_examples, type(packed.num_examples)) == (7, int)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client_id": 3}, "`client_id` must be a text. Got 3; write '3'"),
        ({"num_examples": 3.5}, "`num_examples` must be a whole number. Got 3.5"),
        ({"min_examples": "3"}, "`min_examples` must be a whole number. Got '3'"),
        ({"exclude_metrics": "m"}, "`exclude_metrics` must be a tuple of names"),
    ],
)
def test_arguments_of_another_type(pack, arguments, message):
    with pytest.raises(TypeError, match=message):
        pack(nn.ModuleDict({"m": SumMetric()}), **arguments)


def test_rows_of_examples_are_refused_before_anything_is_packed(pack):
    with pytest.raises(ExampleStatesNotAllowed, match="`auroc`"):
        pack(nn.ModuleDict({"auroc": BinaryAUROC()}))


@pytest.mark.parametrize(("examples", "withheld"), [(0, True), (9, True), (10, False), (11, False)])
def test_a_client_with_fewer_than_min_examples_sends_no_states(pack, examples, withheld):
    packed = pack(updated(SumMetric(), 1.0), client_id="a", num_examples=examples, min_examples=10)
    assert packed.withheld == withheld
    assert bool(packed.metrics) != withheld
    assert (packed.client_id, packed.num_examples) == ("a", examples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_examples": 5}, "`min_examples=5` needs `num_examples`"),
        ({"num_examples": -1}, "not to be negative. Got -1 and 0"),
        ({"num_examples": 1, "min_examples": -2}, "not to be negative. Got 1 and -2"),
        ({"names": ("x",)}, "`names` names `x`"),
        ({"allow_example_states": ("x",)}, "`allow_example_states` names `x`"),
    ],
)
def test_bad_arguments(pack, arguments, message):
    with pytest.raises(ValueError, match=message):
        pack(nn.ModuleDict({"m": SumMetric()}), **arguments)


class Strange(Metric):
    def __init__(self, default, value):
        super().__init__()
        self.add_state("state", default, dist_reduce_fx="cat" if isinstance(default, list) else "sum")
        self.value = value

    def update(self):
        self.state = [*self.state, self.value] if isinstance(self.state, list) else self.value

    def compute(self):
        return self.state


@pytest.mark.parametrize(
    ("default", "value", "held"),
    [
        ([], (3, b"mask"), "tuple"),
        ([], "text", "str"),
        (torch.tensor(0.0), torch.tensor(1j), "torch.complex64"),
    ],
)
def test_states_that_are_no_real_tensors_are_refused(pack, default, value, held):
    metric = updated(Strange(default, value))
    with pytest.raises(UnsupportedMetric, match=rf"metric `m` \(Strange\): state `state` holds {held}"):
        pack(nn.ModuleDict({"m": metric}), allow_example_states=("m",) if default == [] else ())


def test_a_metric_that_is_already_synchronised_is_packed_as_it_is():
    metric = updated(MeanMetric(), 2.0)
    with metric.sync_context():
        assert pack_metrics(metric).metrics[""].states["mean_value"] == 2.0
    assert metric.compute() == 2.0
