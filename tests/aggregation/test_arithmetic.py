from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation.arithmetic import (
    NARROW,
    QUANTUM_HIGH,
    QUANTUM_LOW,
    SHIFT,
    SHORT,
    bins,
    divide,
    divide_to_odd,
    quanta,
    remainder,
    split,
    two_sum,
)

HIGH, LOW = Fraction(QUANTUM_HIGH), Fraction(QUANTUM_LOW)
wide = st.floats(-(2.0**40), 2.0**40)
sums = st.integers(-(2**53), 2**53)
counts = st.integers(1, 2**43)


def bins_of(value: float, weight: float) -> tuple[int, int]:
    high, low = bins(np.array([value]), weight)
    return int(high[0]), int(low[0])


def exponent_of(x: Fraction) -> int:
    """The whole part of log2 |x|, exactly."""
    near = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return near if abs(x) >= Fraction(2) ** near else near - 1


def divided(high: int, low: int, count: int) -> float:
    return float(divide(np.array([high]), np.array([low]), float(count))[0])


@given(st.floats(-(2.0**23), 2.0**23, width=32), st.integers(1, 2**20))
def test_bins_are_the_nearest_multiples_of_the_quanta(w: float, n: int) -> None:
    high, low = bins_of(w, float(n))
    assert high == round(n * Fraction(w) / HIGH)
    assert low == round((n * Fraction(w) - high * HIGH) / LOW)


@given(st.floats(2.0**-21, 2.0**16, width=32), st.sampled_from([-1, 1]), st.integers(1, 2**20))
def test_bins_keep_every_bit_of_float32_from_two_to_the_minus_21_up(w: float, sign: int, n: int) -> None:
    high, low = bins_of(sign * w, float(n))
    assert high * HIGH + low * LOW == sign * n * Fraction(w)


@given(
    st.one_of(
        st.floats(-NARROW, NARROW, exclude_min=True, exclude_max=True),
        st.integers(-(2**52) + 1, 2**52 - 1).map(lambda halves: halves * 2.0**-45),  # ties, half of them
        st.integers(-(2**28) + 1, 2**28 - 1).map(lambda halves: halves * 2.0**-9),  # ties of the high ones
        st.sampled_from([np.nextafter(NARROW, 0), -np.nextafter(NARROW, 0), 0.0, -0.0, 2.0**-45, 5e-324]),
    )
)
def test_one_rounding_gives_both_bins_of_a_product_whose_quanta_fit_a_word(x: float) -> None:
    high, low = bins_of(x, 1.0)
    terms = np.empty(1, np.int64)
    quanta(np.array([x]), 1.0, terms)
    assert int(terms[0]) == (high << SHIFT) + low


@given(st.floats(-1.0, 1.0, width=32), st.integers(1, 2**19 - 1))
def test_one_rounding_gives_both_bins_of_a_weighted_float32(x: float, weight: int) -> None:
    high, low = bins_of(x, float(weight))
    terms = np.empty(1, np.int64)
    quanta(np.array([x], np.float32), float(weight), terms)
    assert int(terms[0]) == (high << SHIFT) + low


@given(st.floats(-(2.0**43), 2.0**43))
def test_bins_of_the_opposite_weight_are_opposite(x: float) -> None:
    assert bins_of(x, 1.0) == tuple(-multiple for multiple in bins_of(x, -1.0))


@pytest.mark.parametrize("x", [2.0**43, -(2.0**43)])
def test_bins_reach_to_both_ends_of_the_range(x: float) -> None:
    assert bins_of(x, 1.0) == (int(x) * 2**8, 0)


@given(wide, wide)
def test_two_sum_loses_nothing(a: float, b: float) -> None:
    total, error = two_sum(np.array([a]), np.array([b]))
    assert Fraction(float(total[0])) + Fraction(float(error[0])) == Fraction(a) + Fraction(b)
    assert total[0] == a + b


@given(wide)
def test_split_halves_the_significand_exactly(a: float) -> None:
    high, low = split(a)
    assert high + low == a
    for half in (high, low):
        assert float(np.float64(half) * half) == Fraction(half) ** 2 or abs(half) < 1e-150


@given(sums, sums, counts)
def test_divide_rounds_the_exact_quotient_once(high: int, low: int, count: int) -> None:
    # int / int in Python rounds once, half to even.
    assert divided(high, low, count) == float((high * HIGH + low * LOW) / count)


@given(st.integers(2**52, 2**53 - 1), st.integers(1, 2**20), st.sampled_from([-1, 0, 1]))
def test_divide_settles_ties_between_two_float64(odd: int, count: int, nudge: int) -> None:
    # A quotient half-way between two float64 in [2^9, 2^10), or one quantum of the sum off it.
    total = Fraction(2 * odd + 1, 2**44) * count
    high = round(total / HIGH)
    low = round((total - high * HIGH) / LOW) + nudge
    assert divided(high, low, count) == float((high * HIGH + low * LOW) / count)


def test_divide_by_one_returns_the_sum() -> None:
    assert divided(2**8, 1, 1) == 1 + 2.0**-44
    assert divided(-7 * 2**7, 0, 1) == -3.5
    assert divided(0, 0, 1) == 0


@given(sums | st.integers(-9, 9), sums | st.integers(-9, 9), counts, st.integers(3, 40), st.data())
def test_divide_to_odd_keeps_exact_quotients_and_sets_the_last_bit_of_others(
    high: int, low: int, count: int, left_out: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):  # high and low nearly cancel, as those of a small negative sum do
        low = -high * 2**36 + data.draw(st.integers(-9, 9)) if abs(high) < 2**17 else low
    if data.draw(st.booleans()):  # a quotient that is on the coarse grid, or a quantum of the sum off it
        quotient = data.draw(st.integers(-(2**9), 2**9))
        count = data.draw(st.integers(1, 2**30))
        high, low = quotient * count, data.draw(st.integers(-1, 1))
    exact = (high * HIGH + low * LOW) / count
    odd = Fraction(float(divide_to_odd(np.array([high]), np.array([low]), float(count), 2**left_out)[0]))
    exponent = exponent_of(exact) if exact else 0
    unit = Fraction(2) ** (exponent - 52 + left_out)
    if (exact / unit).denominator == 1:
        assert odd == exact
    else:
        assert (odd / unit).denominator == 1
        assert abs(odd - exact) < unit
        assert (odd / unit).numerator % 2 == 1


@pytest.mark.parametrize("count", [2**27 - 1, 2**28 + 1, 2**29 - 1, 2**30 + 1])
@pytest.mark.parametrize("left_out", [20, 25, 27, 29])
def test_divide_to_odd_knows_an_exact_quotient_whatever_bits_its_product_with_the_count_needs(
    left_out: int, count: int
) -> None:
    # Quotients in [1, 2) with the last bit but one set, and sums a quantum off them.
    unit = Fraction(2) ** (left_out - 52)
    quotients = [sign * (1 + (2 * i + 1) * 2 * unit) for i in range(50) for sign in (1, -1)]
    for nudge in (-1, 0, 1):
        sums = [quotient * count + nudge * LOW for quotient in quotients]
        high = [round(total / HIGH) for total in sums]
        low = [int((total - h * HIGH) / LOW) for total, h in zip(sums, high, strict=True)]
        odd: Any = divide_to_odd(np.array(high), np.array(low), float(count), 2**left_out)
        assert [Fraction(number) for number in odd.tolist()] == [q + nudge * unit for q in quotients]


@given(st.integers(-(2**30), 2**30), st.integers(1, 2**20), st.integers(-2, 2))
def test_remainder_is_exact_near_the_quotient(total: int, count: int, units: int) -> None:
    near = np.array([total / count])
    for _ in range(abs(units)):
        near = np.nextafter(near, np.inf * units)
    left = remainder(np.array([float(total)]), np.array([0.0]), near, float(count))
    assert Fraction(float(left[0])) == total - Fraction(float(near[0])) * count


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@given(data=st.data())
def test_divide_to_odd_and_on_to_nearest_is_rounding_once(
    dtype: Any, round_to: Callable[[Fraction, Any], Fraction], data: st.DataObject
) -> None:
    # Quotients at the midpoints of the grid, and a little to either side, where rounding twice goes wrong.
    number = data.draw(st.floats(2.0**-5, 100.0, width=32))
    below = round_to(Fraction(number), dtype)
    above = Fraction(float(np.nextafter(np.array(float(below), dtype), np.array(200, dtype))))
    count = data.draw(st.integers(1, 2**30) | st.integers(SHORT - 2, SHORT + 2))
    total = (below + above) / 2 * count
    high = round(total / HIGH)
    low = round((total - high * HIGH) / LOW) + data.draw(st.sampled_from([-3, -1, 0, 1, 3]))
    unit = 2**27 if dtype is np.float32 else 2**29
    odd = divide_to_odd(np.array([high]), np.array([low]), float(count), unit).astype(np.float32)
    exact = (high * HIGH + low * LOW) / count
    assert Fraction(float(odd.astype(dtype).astype(np.float64)[0])) == round_to(exact, dtype)
