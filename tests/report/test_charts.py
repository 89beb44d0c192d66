"""Charts put each value where its axis says."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.report import charts
from lightning_fl_ext.report.families import Family, Series, group_metrics
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection


def chart_of(*values, title="loss", is_bytes=False):
    rounds = [RoundRecord(n) for n in range(1, len(values[0]) + 1)]
    series = tuple(Series(f"s{i}", f"s{i}", tuple(v)) for i, v in enumerate(values))
    return charts.make_chart(Family(title, series, is_bytes=is_bytes), rounds)


def value_at(chart, y):
    """Read a value off the y axis."""
    low, high = chart.y_ticks[0], chart.y_ticks[-1]
    share = (y - low.at) / (high.at - low.at)
    return float(low.label) + share * (float(high.label) - float(low.label))


def test_values_can_be_read_off_the_axes():
    values = (0.25, 0.5, 0.875, 0.75)
    chart = chart_of(values)
    (line,) = chart.lines
    assert [value_at(chart, mark.y) for mark in line.marks] == pytest.approx(values, abs=2e-3)
    ticks = {tick.label: tick.at for tick in chart.x_ticks}
    assert [mark.x for mark in line.marks] == [ticks[str(n)] for n in (1, 2, 3, 4)]


def test_a_missing_value_is_a_gap():
    (line,) = chart_of((1.0, 0.5, math.nan, 0.25, 0.125)).lines
    assert line.path.count("M") == 2
    assert len(line.marks) == 4


def test_a_lone_value_between_gaps_is_still_marked():
    (line,) = chart_of((math.nan, 0.5, math.inf)).lines
    assert [mark.tooltip for mark in line.marks] == ["round 2, s0: 0.5"]


def test_bytes_are_bars_that_start_at_nothing():
    chart = chart_of((4000.0, 2000.0), (4000.0, 4000.0), title="bytes", is_bytes=True)
    assert chart.lines == ()
    assert [bar.height for bar in chart.bars][1] == pytest.approx(chart.bars[0].height / 2, abs=0.02)
    assert {round(bar.y + bar.height, 1) for bar in chart.bars} == {charts.HEIGHT - charts.BOTTOM}
    assert chart.y_ticks[-1].label == "4 kB"
    spans = sorted((bar.x, bar.x + bar.width) for bar in chart.bars)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_many_rounds_are_drawn_without_dots_and_bars():
    chart = chart_of(tuple(float(n) for n in range(300)), title="bytes", is_bytes=True)
    assert not chart.dots
    assert len(chart.lines[0].marks) == 300
    assert len(chart.x_ticks) <= 11


def test_more_series_than_colours_are_named_instead():
    chart = chart_of(*[(float(i),) for i in range(9)])
    assert len(chart.lines) == charts.MAX_SERIES
    assert chart.left_out == ("s6", "s7", "s8")


def test_the_summary_says_where_each_series_begins_ends_and_turns():
    chart = chart_of((2.0, 0.5, 1.0))
    assert chart.summary == (
        "loss by round. s0: 2 in round 1, 1 in round 3; lowest 0.5 in round 2, highest 2 in round 1."
    )


def test_rounds_with_something_left_out_are_marked(records):
    accuracy, *_ = [charts.make_chart(family, records) for family in group_metrics(records)]
    assert [(event.tooltip, event.void) for event in accuracy.events] == [
        ("round 2: left out: b (not-finite)", False),
        ("round 4: void, the model stays; left out: a (no-reply), b (no-reply), c (no-reply)", True),
    ]


def test_a_metric_that_is_left_out_is_no_event():
    odd = Rejection("a", 1, Reason.METRIC, "loss")
    rounds = [RoundRecord(1, rejected=(odd,), metrics={"loss": 1.0})]
    assert charts.make_chart(group_metrics(rounds)[0], rounds).events == ()


@given(st.lists(st.floats(), min_size=1, max_size=60), st.booleans())
def test_every_series_stays_within_the_box(values, is_bytes):
    if not any(map(math.isfinite, values)):
        return
    chart = chart_of(values, is_bytes=is_bytes)
    numbers = [float(n) for line in chart.lines for n in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", line.path)]
    for x, y in zip(numbers[::2], numbers[1::2], strict=True):
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1
    assert all(bar.height >= -0.01 for bar in chart.bars)
