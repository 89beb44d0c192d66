"""Every order of arrival gives one answer, on Flower's own types and on the package's."""

import random
from itertools import permutations

import numpy as np
import pytest
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.server.client_proxy import ClientProxy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.results import (
    ClientUpdate,
    EpochResult,
    decode_and_pseudo_sort_results,
    digest,
    order_results,
    pseudo_sort_scoring_function,
)


class Proxy(ClientProxy):
    """A `ClientProxy` as plain as Flower allows."""

    def get_properties(self, ins, timeout, group_id):
        raise NotImplementedError

    def get_parameters(self, ins, timeout, group_id):
        raise NotImplementedError

    def fit(self, ins, timeout, group_id):
        raise NotImplementedError

    def evaluate(self, ins, timeout, group_id):
        raise NotImplementedError

    def reconnect(self, ins, timeout, group_id):
        raise NotImplementedError


def fit_result(cid, arrays, count):
    return Proxy(cid), FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), count, {})


def fingerprint(ordered):
    return [(proxy.cid, digest(arrays), count) for proxy, arrays, count in ordered]


# Few distinct values, so that ties, NaN and empty arrays are common.
models = st.lists(
    st.sampled_from(["<f4", "<f8", "<i8"]).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2),
            elements=st.sampled_from([0, 1] if dtype == "<i8" else [0.0, -0.0, 1.0, float("nan")]),
        )
    ),
    max_size=2,
)
rounds = st.lists(st.tuples(models, st.integers(1, 2)), min_size=3, max_size=5)


@given(rounds)
def test_every_arrival_order_of_flower_results_gives_one_answer(results):
    arrived = [fit_result(str(cid), arrays, count) for cid, (arrays, count) in enumerate(results)]
    answers = {tuple(fingerprint(decode_and_pseudo_sort_results(list(p)))) for p in permutations(arrived)}
    assert len(answers) == 1


@given(rounds)
def test_flower_results_are_sorted_by_the_score_with_nan_last(results):
    arrived = [fit_result(str(cid), arrays, count) for cid, (arrays, count) in enumerate(results)]
    scores = [float(pseudo_sort_scoring_function(r)) for r in decode_and_pseudo_sort_results(arrived)]
    np.testing.assert_array_equal(scores, np.sort(scores))  # np.sort puts NaN last too


def test_flower_results_are_decoded_to_the_bit_and_keep_their_client_and_count():
    sent = [np.array([[1.5, -0.0], [np.nan, np.inf]], np.float16), np.array(3), np.array(["Cat"])]
    results = [fit_result("a", sent, 7), fit_result("b", [], 1)]
    (first, none, one), (second, arrays, seven) = decode_and_pseudo_sort_results(results)
    assert (first.cid, none, one, second.cid, seven) == ("b", [], 1, "a", 7)
    assert digest(arrays) == digest(sent)


def test_equal_scores_are_ordered_by_digest():
    arrays = [np.array([0.5, x]) for x in range(6)]
    ordered = decode_and_pseudo_sort_results([fit_result("c", [a], 1) for a in arrays])
    assert [digest(r[1]) for r in ordered] == sorted(digest([a]) for a in arrays)


def test_a_sum_over_ordered_results_is_the_same_for_every_arrival_and_over_unordered_ones_is_not():
    rng = np.random.default_rng(0)
    arrived = [fit_result(str(i), [rng.normal(size=50).astype(np.float32)], 1 + i) for i in range(4)]

    def mean(results):
        return sum(arrays[0] * np.float32(count) for _, arrays, count in results) / np.float32(10)

    def decode(results):
        return [decode_and_pseudo_sort_results([r])[0] for r in results]

    ordered = {mean(decode_and_pseudo_sort_results(list(p))).tobytes() for p in permutations(arrived)}
    unordered = {mean(decode(p)).tobytes() for p in permutations(arrived)}
    assert len(ordered) == 1
    assert len(unordered) > 1


def test_equal_bytes_with_nan_scores_are_ordered_by_count_then_client():
    nan = [np.array([np.nan])]
    arrived = [fit_result(*who) for who in (("b", nan, 2), ("a", nan, 2), ("c", nan, 1))]
    for order in permutations(arrived):
        ordered = decode_and_pseudo_sort_results(list(order))
        assert [(proxy.cid, count) for proxy, _, count in ordered] == [("c", 1), ("a", 2), ("b", 2)]


def test_payloads_that_would_unpickle_are_refused():
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([{}]), allow_pickle=True)
    bad = FitRes(Status(Code.OK, ""), Parameters([stream.getvalue()], "numpy.ndarray"), 1, {})
    with pytest.raises(ValueError, match="allow_pickle"):
        decode_and_pseudo_sort_results([(Proxy("a"), bad)])


def named(arrays):
    return {str(i): a for i, a in enumerate(arrays)}


def identity(result):
    who = result.client_id if isinstance(result, ClientUpdate) else result.epoch
    return who, result.digest, result.num_examples


@given(rounds, st.sampled_from(["every", "some", "none"]))
def test_every_arrival_order_of_updates_gives_one_answer(results, declared):
    def client_id(i):
        return f"site-{i}" if declared == "every" or (declared == "some" and i % 2) else ""

    updates = [ClientUpdate(named(a), n, client_id=client_id(i)) for i, (a, n) in enumerate(results)]
    assert len({tuple(map(identity, order_results(p))) for p in permutations(updates)}) == 1


@given(rounds)
def test_every_order_of_epoch_results_gives_one_answer(results):
    epochs = [EpochResult(named(a), n, epoch=i) for i, (a, n) in enumerate(results)]
    assert len({tuple(map(identity, order_results(p))) for p in permutations(epochs)}) == 1


def test_updates_that_all_declare_a_client_are_sorted_by_it_alone():
    updates = [ClientUpdate({"w": np.array([-float(i)])}, 1, client_id=f"{i:02d}") for i in range(12)]
    random.Random(0).shuffle(updates)
    assert [u.client_id for u in order_results(updates)] == [f"{i:02d}" for i in range(12)]


def test_one_nameless_update_puts_all_into_the_order_of_scores():
    values = {"a": 3.0, "": np.nan, "b": 1.0, "c": -np.inf, "d": np.inf}
    updates = [ClientUpdate({"w": np.array([v])}, 1, client_id=c) for c, v in values.items()]
    assert [u.client_id for u in order_results(updates)] == ["c", "b", "a", "d", ""]


def test_order_results_returns_a_new_list_and_takes_any_iterable():
    results = [EpochResult({"w": np.array([v])}, 1, epoch=0) for v in (2.0, 1.0)]
    assert order_results(iter(results)) == results[::-1]
    assert results[0].score == 3.0
