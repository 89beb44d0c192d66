"""Sums and means against rational arithmetic."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.metrics.reductions import exact_sum, weighted_mean

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100)


@given(st.lists(finite, min_size=1, max_size=20))
def test_a_float_sum_is_the_float64_nearest_to_the_true_sum(values):
    total = exact_sum([np.array([value]) for value in values])
    assert total[0] == float(sum(map(Fraction, values)))


@given(st.lists(finite, min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_a_sum_and_a_mean_do_not_depend_on_the_order(values, order: random.Random):
    weights = list(range(1, len(values) + 1))
    shuffled = list(zip(values, weights, strict=True))
    order.shuffle(shuffled)
    arrays, mixed = [np.array(v) for v in values], [np.array(v) for v, _ in shuffled]
    assert exact_sum(arrays).tobytes() == exact_sum(mixed).tobytes()
    assert weighted_mean(arrays, weights) == weighted_mean(mixed, [w for _, w in shuffled])


@given(st.lists(st.tuples(finite, st.integers(1, 1000)), min_size=1, max_size=12))
def test_a_weighted_mean_is_the_true_one_to_a_rounding_for_each_step(pairs):
    values, weights = zip(*pairs, strict=True)
    true = sum(Fraction(v) * w for v, w in pairs) / sum(weights)
    scale = max(map(abs, values)) or 1.0
    assert weighted_mean([np.array(v) for v in values], weights) == pytest.approx(
        float(true), abs=1e-15 * scale
    )


def test_equal_values_are_their_own_mean():
    value = np.array([0.1, 255.0, 1e-8], np.float32)
    assert weighted_mean([value] * 3, [7, 11, 13]).tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("dtype", "summed", "mean"),
    [
        ("bool", "int64", "float32"),
        ("int32", "int32", "float32"),
        ("int64", "int64", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_dtypes_and_shapes_of_sums_and_means(dtype, summed, mean):
    arrays = [np.ones((2, 0, 3), dtype), np.ones((2, 0, 3), dtype)]
    assert (exact_sum(arrays).dtype, exact_sum(arrays).shape) == (summed, (2, 0, 3))
    assert (weighted_mean(arrays, [1, 2]).dtype, weighted_mean(arrays, [1, 2]).shape) == (mean, (2, 0, 3))
    assert exact_sum([np.array(True)] * 3) == 3 if dtype == "bool" else True


def test_integers_beyond_53_bits_are_added_exactly():
    parts = [np.int64(2**60 + 1), np.int64(2**60 + 2), np.int64(-5)]
    for order in itertools.permutations(parts):
        assert exact_sum([np.array(part) for part in order]) == 2**61 - 2


def test_narrow_integers_widen_rather_than_wrap():
    total = exact_sum([np.array([100, 1], np.int8)] * 2)
    assert total.tolist() == [200, 2]
    assert total.dtype == np.int64


@pytest.mark.parametrize("part", [np.int64(2**62), np.int64(-(2**62) - 1)])
def test_an_integer_sum_that_may_not_fit_is_refused(part):
    with pytest.raises(OverflowError, match="64 bits"):
        exact_sum([np.array(part)] * 2)


def test_a_float_sum_beyond_float64_is_refused():
    with pytest.raises(OverflowError):
        exact_sum([np.array(1.7e308)] * 2)


def test_a_float32_sum_beyond_float32_is_infinite_as_in_torch():
    assert np.isinf(exact_sum([np.array(3e38, np.float32)] * 2))
