"""Tick marks enclose their range and are few and round, for every range."""

import math
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from lightning_fl_ext.report.scales import (
    LARGEST,
    nice_ticks,
    round_ticks,
    show_bytes,
    show_number,
    show_tick,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(numbers, numbers)
@example(5e-324, 5e-324)
@example(0.0, 1e-310)
def test_ticks_enclose_every_range_in_few_steps(a, b):
    low, high = (max(-LARGEST, min(v, LARGEST)) for v in sorted((a, b)))
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(map(math.isfinite, ticks))
    assert all(x < y for x, y in pairwise(ticks))
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round(low, span):
    ticks = nice_ticks(low, low + span)
    step = ticks[1] - ticks[0]
    leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(leading - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.integers(0, 50), st.integers(0, 3000), st.integers(1, 20))
def test_round_ticks_have_the_first_and_the_last_and_never_crowd(first, more, count):
    ticks = round_ticks(range(first, first + more + 1), count)
    assert (ticks[0], ticks[-1]) == (first, first + more)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= max(count, 2) + 2


@given(st.floats())
def test_every_number_can_be_written_in_little_room(value):
    assert len(show_number(value)) <= 12
    assert len(show_tick(value)) <= 11
    assert show_bytes(abs(value))
