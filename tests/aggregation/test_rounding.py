"""Rounding to a narrow float happens once, whatever lies between."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation.rounding import midpoint, rounded

NARROW = (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
TIE = [1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, 1 + 3 * 2.0**-8 - 2.0**-50]
values = st.one_of(st.sampled_from(TIE), st.floats(-200, 200), st.floats(-1e-3, 1e-3))


@pytest.mark.parametrize("dtype", NARROW)
@given(value=values)
def test_float64_is_rounded_once(dtype, round_to, value):
    got = rounded(np.array([value]), np.dtype(dtype))
    assert Fraction(float(got[0])) == round_to(Fraction(value), dtype)


def test_bfloat16_by_way_of_float32_would_be_rounded_twice():
    value = np.array([TIE[1]])
    twice = value.astype(np.float32).astype(ml_dtypes.bfloat16)
    assert rounded(value, np.dtype(ml_dtypes.bfloat16)) > twice


@pytest.mark.parametrize("dtype", [*NARROW, np.float32, np.float64])
@given(pair=st.tuples(values, values))
def test_a_midpoint_is_rounded_once(dtype, round_to, pair):
    low, high = (np.array([v]).astype(dtype) for v in pair)
    exact = (Fraction(float(low[0])) + Fraction(float(high[0]))) / 2
    wide = np.float64 if dtype is np.float64 else np.float32
    got = midpoint(low.astype(wide), high.astype(wide), np.dtype(dtype))
    assert got.dtype == dtype
    assert Fraction(float(got[0])) == round_to(exact, dtype)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_midpoint_of_the_largest_numbers_does_not_overflow(dtype):
    largest = ml_dtypes.finfo(dtype).max
    wide = np.array([largest]).astype(np.float64 if dtype is np.float64 else np.float32)
    assert midpoint(wide, wide, np.dtype(dtype))[0] == largest
    tiny = np.array([ml_dtypes.finfo(dtype).smallest_subnormal]).astype(wide.dtype)
    assert midpoint(tiny, tiny, np.dtype(dtype)).astype(wide.dtype) == tiny
