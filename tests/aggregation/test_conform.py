"""What a strategy computed, in the model's dtypes."""

import ml_dtypes
import numpy as np
import pytest

from lightning_fl_ext.aggregation.conform import conform


def cast(values, dtype):
    values = np.asarray(values)
    (result,) = conform({"a": values}, {"a": np.zeros(values.shape, dtype)}).values()
    assert result.dtype == np.dtype(dtype)
    return result.tolist()


def test_integers_are_rounded_half_to_even():
    assert cast([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999], np.int64) == [0, 2, 2, 0, -2, 2]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64", "uint64"])
def test_integers_stop_at_the_ends_of_their_range(dtype):
    ends = np.iinfo(dtype)
    assert cast([-1e30, 1e30, np.inf, -np.inf], dtype) == [ends.min, ends.max, ends.max, ends.min]


def test_whole_numbers_are_cast_exactly():
    assert cast(np.array([2**53 + 1]), np.int64) == [2**53 + 1]


def test_a_bool_is_the_majority_and_a_tie_is_false():
    assert cast([0.0, 0.5, 0.5000001, 1.0], bool) == [False, False, True, True]


def test_floats_are_rounded_to_the_narrower_dtype_and_may_overflow():
    assert cast([1e5, 1.0], np.float16) == [np.inf, 1.0]
    assert cast(np.array([1 + 2**-8, 3.0], np.float32), ml_dtypes.bfloat16) == [1.0, 3.0]


def test_the_model_gives_the_order():
    like = {"b": np.zeros(1), "a": np.zeros(1)}
    assert list(conform({"a": np.ones(1), "b": np.ones(1)}, like)) == ["b", "a"]
