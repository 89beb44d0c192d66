"""Merged metrics against one metric fed everything, in every order of arrival."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
from _packs import pack_of, packs_of
from torch import nn
from torchmetrics import CatMetric, MeanMetric, Metric, MetricCollection, RunningMean, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryAveragePrecision, MulticlassF1Score
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.regression import ExplainedVariance, KendallRankCorrCoef, PearsonCorrCoef, R2Score
from torchmetrics.retrieval import RetrievalMAP

from lightning_fl_ext.metrics import (
    MetricMismatch,
    MetricPack,
    MetricStates,
    merge_metrics,
    missing_clients,
    pack_metrics,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*will save all (targets|predictions)")


def test_the_merged_value_is_the_pooled_value(case, assert_same):
    pooled = case.client(case.pooled())["m"].compute()
    merged = merge_metrics(case.client(), packs_of(case))["m"].compute()
    assert_same(merged, pooled, 0.0 if case.exact else 1e-6)


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without ids"])
def test_the_order_of_arrival_does_not_change_a_bit(case, ids, assert_same):
    packs = packs_of(case, ids)
    first = merge_metrics(case.client(), packs)["m"].compute()
    for order in list(itertools.permutations(packs))[1:]:
        assert_same(merge_metrics(case.client(), order)["m"].compute(), first)


def test_the_documentation_tells_each_metric_and_how_equal_it_is(cases):
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| ([^|]+) \| (counts|rows) \| (bits|1e-6) \|$", page, re.MULTILINE))
    known = {
        (case.name, "rows" if case.rows else "counts", "bits" if case.exact else "1e-6") for case in cases
    }
    assert told == known


def test_merged_values_are_those_of_scikit_learn_on_all_data():
    rng = np.random.default_rng(0)
    labels, sizes = rng.integers(0, 3, 60), [40, 15, 5]
    preds, scores = rng.integers(0, 3, 60), rng.random(60).astype(np.float32)
    positive, target = (labels > 0).astype(int), rng.normal(size=60).astype(np.float32)

    def module():
        return nn.ModuleDict(
            {
                "f1": MulticlassF1Score(3),
                "auroc": BinaryAUROC(),
                "ap": BinaryAveragePrecision(),
                "r2": R2Score(),
                "pearson": PearsonCorrCoef(),
            }
        )

    packs = []
    for i, part in enumerate(np.split(np.arange(60), np.cumsum(sizes)[:-1])):
        client = module()
        client["f1"].update(torch.tensor(preds[part]), torch.tensor(labels[part]))
        client["auroc"].update(torch.tensor(scores[part]), torch.tensor(positive[part]))
        client["ap"].update(torch.tensor(scores[part]), torch.tensor(positive[part]))
        client["r2"].update(torch.tensor(scores[part]), torch.tensor(target[part]))
        client["pearson"].update(torch.tensor(scores[part]), torch.tensor(target[part]))
        packs.append(pack_metrics(client, client_id=str(i), allow_example_states=("auroc", "ap")))
    merged = merge_metrics(module(), packs)
    expected = {
        "f1": sklearn.metrics.f1_score(labels, preds, average="macro"),
        "auroc": sklearn.metrics.roc_auc_score(positive, scores),
        "ap": sklearn.metrics.average_precision_score(positive, scores),
        "r2": sklearn.metrics.r2_score(target, scores),
        "pearson": np.corrcoef(scores, target)[0, 1],
    }
    assert {name: float(merged[name].compute()) for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("build", [R2Score, PearsonCorrCoef, KendallRankCorrCoef, ExplainedVariance])
def test_a_client_with_one_example_counts_though_it_has_no_value_of_its_own(build):
    g = torch.Generator().manual_seed(1)
    pooled, packs = build(), []
    for client, n in {"a": 1, "b": 1, "c": 6}.items():
        batch, metric = (torch.randn(n, generator=g), torch.randn(n, generator=g)), build()
        metric.update(*batch)
        pooled.update(*batch)
        packs.append(pack_of(metric, client, allow_example_states=("m",)))
    merged = merge_metrics(nn.ModuleDict({"m": build()}), packs)["m"].compute()
    assert merged == pytest.approx(float(pooled.compute()), abs=1e-6)


def test_merging_replaces_what_the_module_held_and_can_be_repeated():
    client, server = SumMetric(), nn.ModuleDict({"m": SumMetric()})
    client.update(3.0)
    server["m"].update(100.0)
    for _ in range(2):
        assert merge_metrics(server, [pack_of(client)]) is server
        assert server["m"].compute() == 3.0
    assert server["m"].update_count == 1


def test_a_value_computed_before_is_not_told_again():
    server = nn.ModuleDict({"m": SumMetric()})
    server["m"].update(1.0)
    server["m"].compute()
    client = SumMetric()
    client.update(2.0)
    assert merge_metrics(server, [pack_of(client)])["m"].compute() == 2.0


def test_a_metric_that_no_client_updated_has_no_value():
    server = nn.ModuleDict({"m": SumMetric()})
    server["m"].update(100.0)
    merge_metrics(server, [pack_of(SumMetric(), "a"), pack_of(SumMetric(), "b")])
    assert not server["m"].update_called
    assert server["m"].sum_value == 0.0


def test_metrics_that_the_packs_do_not_name_stay_as_they_are():
    def module():
        return nn.ModuleDict({"fit": SumMetric(), "val": SumMetric()})

    client, server = module(), module()
    client["fit"].update(1.0)
    client["val"].update(2.0)
    server["fit"].update(5.0)
    merge_metrics(server, [pack_metrics(client, names=("val",))])
    assert (server["fit"].compute(), server["val"].compute()) == (5.0, 2.0)


def test_members_of_a_collection_that_are_not_merged_go_on_each_for_itself():
    def module():
        return nn.ModuleDict({"m": MetricCollection({name: CatMetric() for name in "abc"})})

    client, server = module(), module()
    for part in (client, server):
        part["m"].update(torch.tensor([1.0]))
    assert server["m"].compute_groups == {0: ["a", "b", "c"]}  # one list of values for all three
    merge_metrics(server, [pack_metrics(client, names=("m.a",), allow_example_states=("m",))])
    server["m"].update(torch.tensor([2.0]))
    assert {name: values.tolist() for name, values in server["m"].compute().items()} == {
        name: [1.0, 2.0] for name in "abc"
    }


def test_one_client_alone_leaves_the_states_it_had():
    client = PearsonCorrCoef()
    client.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    packs = [pack_of(client, "a"), pack_of(PearsonCorrCoef(), "idle")]
    merged = merge_metrics(nn.ModuleDict({"m": PearsonCorrCoef()}), packs)
    for state, value in client.metric_state.items():
        assert torch.equal(merged["m"].metric_state[state], value)
        assert merged["m"].metric_state[state].shape == value.shape


def test_packing_leaves_the_client_free_to_go_on(case):
    batches = case.pooled()
    client = case.client(batches[:2])
    before = pack_metrics(client, allow_example_states=("m",)).digest
    pack = pack_metrics(client, allow_example_states=("m",))
    client["m"].update(*batches[2])
    assert pack.digest == before
    assert client["m"].compute() is not None
    client["m"].reset()
    assert MetricPack.from_arrays(*pack.to_arrays()).digest == before


class CustomStates(Metric):
    """A mean state, a maximum by a custom reduction, and a tensor that grows."""

    def __init__(self):
        super().__init__()
        self.add_state("average", torch.tensor(0.0), dist_reduce_fx="mean")
        self.add_state("longest", torch.tensor(0), dist_reduce_fx=longest)
        self.add_state("rows", torch.zeros(0, 2), dist_reduce_fx="cat")

    def update(self, rows):
        self.average = (self.average * (self._update_count - 1) + rows.mean()) / self._update_count
        self.longest = torch.maximum(self.longest, torch.tensor(len(rows)))
        self.rows = torch.cat([self.rows, rows])

    def compute(self):
        return self.average, self.longest, self.rows


def longest(stacked):
    return stacked.max(0).values


def test_mean_custom_and_growing_states_follow_their_declared_reduction():
    batches = {"a": [3, 1, 5], "b": [2], "c": []}
    rows = {client: [torch.randn(n, 2) for n in sizes] for client, sizes in batches.items()}
    packs = []
    for client, own in rows.items():
        metric = CustomStates()
        for batch in own:
            metric.update(batch)
        packs.append(pack_of(metric, client, allow_example_states=("m",)))
    average, largest, grown = merge_metrics(nn.ModuleDict({"m": CustomStates()}), packs[::-1])["m"].compute()
    all_batches = [batch for own in rows.values() for batch in own]
    torch.testing.assert_close(average, torch.stack([batch.mean() for batch in all_batches]).mean())
    assert largest == 5
    assert torch.equal(grown, torch.cat(all_batches))


def test_mean_states_weigh_clients_by_their_updates():
    client = PeakSignalNoiseRatio(data_range=1.0)
    states = {"sum_squared_error": np.float32(1), "total": np.int64(1)}
    template = pack_of(client).metrics["m"]

    def pack(updates, value):
        sent = states | {"data_range": value}
        metric = MetricStates(template.class_path, template.configuration, updates, sent)
        return MetricPack({"m": metric}, client_id=str(updates))

    packs = [pack(1, np.float32(4)), pack(3, np.float32(8))]
    assert merge_metrics(nn.ModuleDict({"m": client}), packs)["m"].data_range == 7.0


def test_bfloat16_states_are_merged_as_float32():
    parts = [MeanMetric().set_dtype(torch.bfloat16) for _ in range(2)]
    for part, value in zip(parts, (1.0, 3.0), strict=True):
        part.update(value)
    packs = [pack_of(part, str(i)) for i, part in enumerate(parts)]
    assert packs[0].metrics["m"].states["mean_value"].dtype == np.float32
    server = nn.ModuleDict({"m": MeanMetric().set_dtype(torch.bfloat16)})
    assert merge_metrics(server, packs)["m"].compute() == 2.0


def test_equal_query_ids_of_two_clients_are_different_queries():
    parts = [RetrievalMAP() for _ in range(2)]
    query = torch.tensor([2**62, 2**62])  # far apart ids must not overflow
    parts[0].update(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), query)
    parts[1].update(torch.tensor([0.9, 0.1]), torch.tensor([0, 1]), query)
    packs = [pack_of(part, str(i), allow_example_states=("m",)) for i, part in enumerate(parts)]
    merged = merge_metrics(nn.ModuleDict({"m": RetrievalMAP()}), packs)
    assert merged["m"].compute() == pytest.approx((1.0 + 0.5) / 2)


def test_compute_groups_that_the_server_guessed_do_not_spread_to_merged_states():
    def module():
        return nn.ModuleDict({"m": MetricCollection({"a": BinaryAccuracy(0.5), "b": BinaryAccuracy(0.8)})})

    # Both members have equal states after this batch, so torchmetrics makes them one group.
    server = module()
    server["m"].update(torch.tensor([0.9]), torch.tensor([1]))
    assert server["m"].compute_groups == {0: ["a", "b"]}
    client = module()
    client["m"].update(torch.tensor([0.9, 0.6]), torch.tensor([1, 0]))
    merge_metrics(server, [pack_metrics(client)])
    assert server["m"].compute() == {"a": torch.tensor(0.5), "b": torch.tensor(1.0)}
    # The server's collection can still be updated, and counts each example once.
    server["m"].update(torch.tensor([0.9, 0.6]), torch.tensor([1, 0]))
    assert server["m"]["a"].compute() == 0.5
    assert sum(int(server["m"]["a"].metric_state[key]) for key in ("tp", "fp", "tn", "fn")) == 4


def test_a_minmax_wrapper_on_the_server_keeps_extremes_over_rounds(cases):
    case = next(case for case in cases if case.name == "MinMaxMetric")
    server, data = case.client(), case.data()
    per_round = []
    for client in ("a", "b"):
        merge_metrics(server, [pack_metrics(case.client(data[client]))])
        per_round.append(server["m"].compute())
    values = [entry["raw"] for entry in per_round]
    assert per_round[-1]["min"] == min(values)
    assert per_round[-1]["max"] == max(values)


@pytest.mark.parametrize("packs", [[], [MetricPack({}, "a", 1, withheld=True)]], ids=["none", "withheld"])
def test_without_any_states_no_value_of_an_earlier_round_remains(packs):
    server = nn.ModuleDict({"m": SumMetric(), "running": RunningMean()})
    server["m"].update(5.0)
    merge_metrics(server, packs)
    assert not server["m"].update_called


def test_no_packs_and_no_metrics_are_fine():
    assert merge_metrics(nn.Linear(1, 1), []) is not None
    assert merge_metrics(nn.Linear(1, 1), [pack_metrics(nn.Linear(1, 1))]) is not None


def test_withheld_packs_are_left_out_and_named():
    parts = {"a": (2.0, 10), "z": (4.0, 3), "b": (8.0, 2)}
    packs = []
    for client, (value, examples) in parts.items():
        metric = SumMetric()
        metric.update(value)
        packs.append(pack_of(metric, client, num_examples=examples, min_examples=5))
    assert merge_metrics(nn.ModuleDict({"m": SumMetric()}), packs)["m"].compute() == 2.0
    assert missing_clients(packs) == ("b", "z")


def two(**values):
    """Metrics `a` and `b`; those with a value have been updated with it."""
    module = nn.ModuleDict({"a": SumMetric(), "b": SumMetric()})
    for name, value in values.items():
        module[name].update(value)
    return module


def test_what_a_client_leaves_out_is_merged_from_the_others():
    packs = [
        pack_metrics(two(a=1.0, b=10.0), client_id="x"),
        pack_metrics(two(a=2.0, b=20.0), client_id="y", exclude_metrics=("b",)),
        pack_metrics(two(a=4.0, b=40.0), client_id="z"),
    ]
    for order in itertools.permutations(packs):
        merged = merge_metrics(two(), order)
        assert (merged["a"].compute(), merged["b"].compute()) == (7.0, 50.0)


def test_what_all_clients_leave_out_has_no_value():
    packs = [pack_metrics(two(a=1.0, b=2.0), client_id=name, exclude_metrics=("b",)) for name in "xyz"]
    merged = merge_metrics(two(b=5.0), packs)
    assert merged["a"].compute() == 3.0
    assert not merged["b"].update_called


def test_a_metric_that_the_server_lacks_can_be_left_out():
    server, own = nn.ModuleDict({"a": SumMetric()}), two(a=1.0, b=2.0)
    message = r"client 'x': .* no metric 'b'\. It has \['a'\]\..*`exclude_metrics=\('b',\)`"
    with pytest.raises(MetricMismatch, match=message):
        merge_metrics(server, [pack_metrics(own, client_id="x")])
    packs = [pack_metrics(own, client_id="x", exclude_metrics=("b",))]
    assert merge_metrics(server, packs)["a"].compute() == 1.0


def test_a_pack_alone_is_no_list_of_packs():
    with pytest.raises(TypeError, match=r"`packs` must hold a pack of each client: write `\[pack\]`"):
        merge_metrics(two(), pack_metrics(two(), client_id="x"))


def test_float_sums_are_exact_where_their_order_would_show():
    values = [1e8, 1.0, -1e8, 3.0]
    packs = []
    for i, value in enumerate(values):
        metric = SumMetric()
        metric.update(value)
        packs.append(pack_of(metric, str(i)))
    assert merge_metrics(nn.ModuleDict({"m": SumMetric()}), packs)["m"].compute() == 4.0
