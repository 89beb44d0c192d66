"""Charts of metrics by round, as coordinates; the page's template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from lightning_fl_ext.metric_names import title_of
from lightning_fl_ext.report.families import Family, Series
from lightning_fl_ext.report.history import left_out
from lightning_fl_ext.report.scales import (
    LARGEST,
    nice_ticks,
    round_ticks,
    show_bytes,
    show_number,
    show_tick,
)
from lightning_fl_ext.server.record import RoundRecord

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 16, 34
MAX_SERIES = 6
"""As many series as there are colours and dashes to tell them apart; further ones are in the table only."""

_MAX_DOTS = 40  # with more rounds than this, dots and bars would run into each other
_MAX_RULES = 12  # with more events than this, their lines would be a hatching


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in the chart's coordinates."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A value: its place, and what it says when pointed at."""

    x: float
    y: float
    tooltip: str


@dataclass(frozen=True)
class Line:
    """One series.

    Attributes:
        label: What the legend calls it.
        path: SVG path data; a gap where a value is missing.
        area: SVG path data of what is under the line.
        marks: Its values.
    """

    label: str
    path: str
    area: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Bar:
    """One value as a bar, from the bottom of the chart."""

    series: int
    x: float
    y: float
    width: float
    height: float
    tooltip: str


@dataclass(frozen=True)
class Event:
    """A round in which something was left out, or that is void."""

    x: float
    tooltip: str
    void: bool


@dataclass(frozen=True)
class Chart:
    """Everything that there is to draw of one family.

    Attributes:
        title: What it shows.
        summary: The same in words, for who cannot see it.
        labels: The legend; empty where there is one series.
        source: The full name of a lone series.
        x_ticks: Rounds.
        y_ticks: Values.
        lines: Series drawn as lines.
        bars: Series drawn as bars.
        events: What happened besides.
        dots: Whether the values are marked.
        rules: Whether the events have lines.
        left_out: Names of series for which there is no room.
        bands: SVG path data of what lies behind each line; ``""`` for nothing.
    """

    title: str
    summary: str
    labels: tuple[str, ...] = ()
    source: str = ""
    x_ticks: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    events: tuple[Event, ...] = ()
    dots: bool = True
    rules: bool = True
    left_out: tuple[str, ...] = field(default=())
    bands: tuple[str, ...] = ()


def make_chart(family: Family, rounds: Sequence[RoundRecord], most: int = MAX_SERIES) -> Chart:
    """Lay out one family's chart.

    Args:
        family: From :func:`~lightning_fl_ext.report.families.group_metrics` of the same rounds.
        rounds: Records of the rounds, ascending; at least one.
        most: Series to draw.

    Returns:
        Coordinates in a box of ``WIDTH`` by ``HEIGHT``.
    """
    show, label = (show_bytes, show_bytes) if family.is_bytes else (show_number, show_tick)
    numbers = [record.server_round for record in rounds]
    series = family.series[:most]
    finite = [v for s in series for v in s.values if math.isfinite(v)]
    low, high = (min(0.0, *finite), max(0.0, *finite)) if family.is_bytes else (min(finite), max(finite))
    y_values = nice_ticks(low, high)
    bottom, top = y_values[0], y_values[-1]

    slot = (WIDTH - LEFT - RIGHT) / (numbers[-1] - numbers[0] + 1)

    def x_of(number: int) -> float:
        return round(LEFT + slot * (number - numbers[0] + 0.5), 2)

    def y_of(value: float) -> float:
        value = max(-LARGEST, min(value, LARGEST))
        share = (value / 2 - bottom / 2) / (top / 2 - bottom / 2)  # halves, since a span may overflow
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 2)

    alone = len(series) == 1
    events = tuple(
        _event(record, x_of(record.server_round)) for record in rounds if record.void or left_out(record)
    )
    chart = Chart(
        title=title_of(family.title),
        summary=_summary(family, series, numbers, show),
        labels=() if alone else tuple(s.label for s in series),
        source=series[0].name if alone else "",
        x_ticks=tuple(Tick(x_of(n), str(n)) for n in round_ticks(numbers)),
        y_ticks=tuple(Tick(y_of(v), label(v)) for v in y_values),
        events=events,
        dots=len(rounds) <= _MAX_DOTS,
        rules=len(events) <= _MAX_RULES,
        left_out=tuple(s.name for s in family.series[most:]),
    )
    marks = [
        [
            Mark(x_of(number), y_of(value), f"round {number}, {s.name}: {show(value)}")
            if math.isfinite(value)
            else None
            for number, value in zip(numbers, s.values, strict=True)
        ]
        for s in series
    ]
    if family.is_bytes and chart.dots:
        return _with(chart, bars=tuple(_bars(marks, slot)))
    return _with(chart, lines=tuple(_line(s.label, m) for s, m in zip(series, marks, strict=True)))


def _with(chart: Chart, **parts: tuple[Line, ...] | tuple[Bar, ...]) -> Chart:
    return Chart(**{**vars(chart), **parts})


def _line(label: str, marks: Sequence[Mark | None]) -> Line:
    path, area = [], []
    for present, group in groupby(marks, key=lambda mark: mark is not None):
        points = [f"{mark.x:g},{mark.y:g}" for mark in group if mark is not None]
        if present:
            run = "M" + "L".join(points)
            start, end = points[0].split(",")[0], points[-1].split(",")[0]
            path.append(run)
            area.append(f"{run}L{end},{HEIGHT - BOTTOM}L{start},{HEIGHT - BOTTOM}Z")
    return Line(label, "".join(path), "".join(area), tuple(mark for mark in marks if mark is not None))


def _bars(marks: Sequence[Sequence[Mark | None]], slot: float) -> list[Bar]:
    width = min(26.0, 0.76 * slot / len(marks))
    gap = min(2.0, 0.1 * width)
    return [
        Bar(
            series,
            round(mark.x + (series - len(marks) / 2) * width + gap / 2, 2),
            mark.y,
            round(width - gap, 2),
            round(HEIGHT - BOTTOM - mark.y, 2),
            mark.tooltip,
        )
        for series, own in enumerate(marks)
        for mark in own
        if mark is not None
    ]


def _event(record: RoundRecord, x: float) -> Event:
    out = [
        f"{r.client_id} ({r.reason}{', evaluation' if r.phase == 'evaluate' else ''})"
        for r in left_out(record)
    ]
    shown = ", ".join(out[:8]) + (f" and {len(out) - 8} more" if len(out) > 8 else "")
    parts = ["void, the model stays"] * record.void + ([f"left out: {shown}"] if out else [])
    return Event(x, f"round {record.server_round}: " + "; ".join(parts), record.void)


def _summary(
    family: Family, series: Sequence[Series], numbers: Sequence[int], show: Callable[[float], str]
) -> str:
    """Say in words what the chart shows: where each series begins and ends, and its extremes."""
    said = []
    for one in series:
        known = [(v, n) for v, n in zip(one.values, numbers, strict=True) if math.isfinite(v)]
        (first, start), (last, end) = known[0], known[-1]
        low, high = min(known), max(known)
        said.append(
            f"{one.name}: {show(first)} in round {start}, {show(last)} in round {end};"
            f" lowest {show(low[0])} in round {low[1]}, highest {show(high[0])} in round {high[1]}"
        )
    return f"{family.title} by round. " + ". ".join(said) + "."
