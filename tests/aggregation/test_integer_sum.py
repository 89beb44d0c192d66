from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation.integer_sum import IntegerSum
from lightning_fl_ext.aggregation.structure import Entry

DTYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]


def total_of(dtype: Any, updates: list[tuple[Any, int]]) -> IntegerSum:
    arrays = [(np.array(values, dtype), weight) for values, weight in updates]
    zero = IntegerSum.zero(Entry(arrays[0][0].shape, np.dtype(dtype)))
    return reduce(lambda total, update: total.add(*update), arrays, zero)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_mean_is_the_fraction_rounded_half_to_even(dtype: Any, data: st.DataObject) -> None:
    info = np.iinfo(dtype)
    edges = st.sampled_from([info.min, info.max, info.max - 1, 0])
    values = edges | st.integers(info.min, info.max) | st.integers(max(info.min, -3), 3)
    updates = data.draw(st.lists(st.tuples(values, st.integers(1, 10**6)), min_size=1, max_size=6))
    total = sum(weight for _, weight in updates)
    mean = total_of(dtype, [([value], weight) for value, weight in updates]).mean(total)
    assert mean.dtype == dtype
    assert int(mean[0]) == round(Fraction(sum(v * n for v, n in updates), total))


def test_ties_go_to_the_even_neighbour() -> None:
    pairs = np.array([[0, 1], [1, 2], [2, 3], [-1, 0], [-2, -1], [-3, -2]]).T
    assert total_of(np.int64, [(pairs[0], 5), (pairs[1], 5)]).mean(10).tolist() == [0, 2, 2, 0, -2, -2]


def test_sums_past_int64_are_whole_numbers_still() -> None:
    total = total_of(np.uint64, [([2**64 - 1, 0], 10**6), ([2**64 - 3, 1], 10**6)])
    assert total.values.tolist() == [10**6 * (2**65 - 4), 10**6]
    assert total.mean(2 * 10**6).tolist() == [2**64 - 2, 0]


def test_merging_gives_what_adding_gives_on_either_side_of_int64() -> None:
    small, large = ([3, -4], 7), ([2**62, -(2**63)], 11)
    for left, right in [(small, small), (small, large), (large, large)]:
        merged = total_of(np.int64, [left]).merge(total_of(np.int64, [right]))
        assert merged.values.tolist() == total_of(np.int64, [right, left]).values.tolist()


@pytest.mark.parametrize(
    ("weights", "majority"),
    [((3, 2), [True, False, True, False]), ((2, 2), [False, False, True, False])],
)
def test_bools_follow_the_weighted_majority_and_ties_are_false(
    weights: tuple[int, int], majority: Any
) -> None:
    votes = ([True, False, True, False], [False, True, True, False])
    mean = total_of(np.bool_, list(zip(votes, weights, strict=True))).mean(sum(weights))
    assert mean.dtype == np.bool_
    assert mean.tolist() == majority


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 1)])
def test_shapes_survive(shape: tuple[int, ...]) -> None:
    for dtype in (np.int32, np.uint64, np.bool_):
        array = np.ones(shape, dtype)
        total = IntegerSum.zero(Entry(shape, np.dtype(dtype))).add(array, 3)
        assert total.mean(3).shape == shape
        assert (total.mean(3) == array).all()


def test_adding_leaves_the_former_sum_alone() -> None:
    before = total_of(np.int64, [([1, 2], 1)])
    before.add(np.array([5, 5]), 2)
    assert before.values.tolist() == [1, 2]
