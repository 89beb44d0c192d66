"""Many runs on one page: their curves over each other, with bands over the seeds, and their final values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

from lightning_fl_ext.metric_names import foremost
from lightning_fl_ext.report import charts
from lightning_fl_ext.report.families import Family, Series, group_metrics
from lightning_fl_ext.report.history import History
from lightning_fl_ext.report.runs import RunGroup, group_runs, names_of
from lightning_fl_ext.report.scales import show_number
from lightning_fl_ext.server.record import RoundRecord

MAX_COLUMNS = 6


def final_table(groups: Sequence[RunGroup]) -> tuple[list[str], list[tuple[str, int, list[str]]]]:
    """Give the final values of each group: the mean over its runs, ± their standard deviation.

    Args:
        groups: From :func:`~lightning_fl_ext.report.runs.group_runs`.

    Returns:
        Names of metrics; and for each group its label, its number of runs, and the values written out, with
        the number of runs that have one if not all do.
    """
    there = {name for g in groups for run in g.runs for r in run.rounds for name in r.metrics}
    names = foremost(there, count=MAX_COLUMNS)
    return names, [
        (g.label, len(g.runs), [_written(g.final(name), len(g.runs)) for name in names]) for g in groups
    ]


def render_runs(runs: Sequence[History]) -> str:
    """Write a page of many runs: curves by round, with bands over seeds, and final values.

    Like :func:`~lightning_fl_ext.report.render_report` it stands alone, runs no script, and escapes whatever
    came from outside.

    Args:
        runs: From :func:`~lightning_fl_ext.report.read_history`, two or more.

    Returns:
        HTML; the same for the same ledgers.
    """
    from lightning_fl_ext.report.page import render

    groups = group_runs(runs)
    columns, rows = final_table(groups)
    names = names_of(runs)
    return render(
        "runs.html.jinja",
        SimpleNamespace(
            name=f"{len(runs)} runs",
            charts=_charts(groups),
            columns=columns,
            rows=rows,
            unfinished=_unfinished(runs),
            hidden=[g.label for g in groups[charts.MAX_SERIES :]],
            problems=[n for n, run in zip(names, runs, strict=True) if run.problems],
            runs=[
                (
                    name,
                    run.fingerprint.get("seed", ""),
                    len(run.rounds),
                    "finished" if run.finished else "not finished",
                    run.digest,
                )
                for name, run in zip(names, runs, strict=True)
            ],
        ),
    )


def _unfinished(runs: Sequence[History]) -> str:
    """Write how many runs are not finished; nothing if all are."""
    number = sum(not run.finished for run in runs)
    return f"{number} run{'s' * (number > 1)}" if number else ""


def _charts(groups: Sequence[RunGroup]) -> list[charts.Chart]:
    numbers = sorted({r.server_round for g in groups for run in g.runs for r in run.rounds})
    rounds = [RoundRecord(number) for number in numbers]
    every = [record for g in groups for run in g.runs for record in run.rounds]
    made = []
    for family in group_metrics(every):
        if family.is_bytes or not family.series:
            continue
        name = family.series[0].name
        curves = [(g.label, g.values(name)) for g in groups[: charts.MAX_SERIES]]
        curves = [(label, values) for label, values in curves if values]
        if curves:
            made.append(_chart(family, name, curves, rounds))
    return made


def _chart(family: Family, name: str, curves: list[tuple[str, dict[int, list[float]]]], rounds: Any) -> Any:
    def series(pick: Any) -> tuple[Series, ...]:
        return tuple(
            Series(
                f"{label}, {name}",
                label,
                tuple(pick(v[r.server_round]) if r.server_round in v else math.nan for r in rounds),
            )
            for label, v in curves
        )

    # The lowest and the highest values take part in the scale, and then make the bands.
    wide = replace(family, series=(*series(fmean), *series(min), *series(max)))
    chart = charts.make_chart(wide, rounds, most=3 * len(curves))
    count = len(curves)
    bands = tuple(
        _band(low.marks, high.marks) if any(len(v) > 1 for v in curves[i][1].values()) else ""
        for i, (low, high) in enumerate(
            zip(chart.lines[count : 2 * count], chart.lines[2 * count :], strict=True)
        )
    )
    labels = tuple(label for label, _ in curves) if count > 1 else ()
    summary = charts.make_chart(replace(family, series=series(fmean)), rounds).summary
    return replace(
        chart,
        lines=chart.lines[:count],
        bands=bands,
        labels=labels,
        source=name,
        summary=summary,
        left_out=(),
    )


def _band(low: Sequence[charts.Mark], high: Sequence[charts.Mark]) -> str:
    points = [f"{mark.x:g},{mark.y:g}" for mark in (*high, *reversed(low))]
    return f"M{'L'.join(points)}Z" if points else ""


def _written(values: Sequence[float], runs: int) -> str:
    if not values:
        return "–"
    spread = f" ± {show_number(stdev(values))}" if len(values) > 1 else ""
    of = f" ({len(values)} of {runs})" if len(values) < runs else ""  # one ended with what is no number
    return f"{show_number(fmean(values))}{spread}{of}"
