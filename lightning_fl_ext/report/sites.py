"""How the model does at each site: a table of the last evaluation, and a small chart of each site."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_fl_ext.metric_names import foremost, of_each_site
from lightning_fl_ext.report.ranking import badness, extremes, left_behind, rank_of, sentence_of
from lightning_fl_ext.report.scales import show_number
from lightning_fl_ext.server.record import RoundRecord, SiteEvaluation

WIDTH, HEIGHT, MARGIN = 200, 74, 5
MAX_METRICS = 5
MAX_MULTIPLES = 24
"""Small charts; of more sites, those that do worst have one."""

MAX_LINES = 60
"""Lines behind each small chart: those of the sites that do worst."""

MAX_ROWS = 200
"""Rows of the table; of more sites, those that do worst."""


@dataclass(frozen=True)
class SiteRow:
    """One site in the table.

    Attributes:
        client: Whose.
        num_examples: Examples that it evaluated the model on.
        values: One of each column, written out; a dash where it tells none.
        ranks: For each column ``"best"``, ``"worst"`` or nothing.
        server_round: Of which round its evaluation is; None if those of all sites are of one.
        gained: How far its foremost metric has come since its first evaluation, written out.
    """

    client: str
    num_examples: int
    values: tuple[str, ...]
    ranks: tuple[str, ...]
    server_round: int | None = None
    gained: str = ""


@dataclass(frozen=True)
class Multiple:
    """One site's small chart.

    Attributes:
        client: Whose.
        path: SVG path data of its own line.
        value: Its last value, written out.
        tooltip: The same in words.
    """

    client: str
    path: str
    value: str
    tooltip: str


@dataclass(frozen=True)
class SitesView:
    """Everything that there is to show of the sites.

    Attributes:
        columns: The metrics' names.
        rows: The sites, the one that does worst by the first metric first.
        summary: One sentence for each metric: the worst, the best, how far they are apart.
        behind: Who is left behind, of the sites of the last evaluation; ``""`` if nobody stands out.
        silent: Sites that tell no value of their own.
        hidden: Number of sites for which there is no room.
        title: What the small charts show; ``""`` if there are none.
        multiples: A small chart of each site, in the order of the rows.
        undrawn: Number of sites for whose small chart there is no room.
        lines: How many sites' lines stand behind each chart at most.
        all_path: SVG path data of those lines.
        span: The lowest and the highest value of the small charts, written out.
    """

    columns: tuple[str, ...]
    rows: tuple[SiteRow, ...]
    summary: tuple[str, ...]
    behind: str = ""
    silent: int = 0
    hidden: int = 0
    title: str = ""
    multiples: tuple[Multiple, ...] = ()
    undrawn: int = 0
    lines: int = MAX_LINES
    all_path: str = ""
    span: tuple[str, str] = ("", "")


def view_sites(rounds: Sequence[RoundRecord], monitor: str | None = None) -> SitesView | None:
    """Lay out how the model does at each site.

    Of each site the table has the last evaluation, whichever round it is of.

    Args:
        rounds: Records, ascending; or the one of a test.
        monitor: The metric to go by. Default: the foremost.

    Returns:
        None if no site has evaluated.
    """
    last: dict[str, SiteEvaluation] = {}
    of_round: dict[str, int] = {}
    for record in rounds:
        last |= record.sites
        of_round |= dict.fromkeys(record.sites, record.server_round)
    if not last:
        return None
    newest = max(of_round.values())
    earlier = {client: number for client, number in of_round.items() if number < newest}
    there = {name for site in last.values() for name in site.metrics}
    columns = foremost(there, monitor and of_each_site(monitor), MAX_METRICS)
    ends = [extremes(name, last) for name in columns]
    now = {client: site for client, site in last.items() if client not in earlier}
    order = sorted(last, key=lambda client: (badness(columns[:1], last[client]), client))
    history = {client: _by_round(rounds, client, columns[0]) for client in order} if columns else {}
    rows = [
        SiteRow(
            client,
            last[client].num_examples,
            tuple(show_number(last[client].metrics.get(name)) for name in columns),
            tuple(
                rank_of(last[client].metrics.get(name), end) for name, end in zip(columns, ends, strict=True)
            ),
            of_round[client] if earlier else None,
            _gained(history.get(client, {}), last[client].metrics.get(columns[0]) if columns else None),
        )
        for client in order
    ]
    view = SitesView(
        tuple(columns),
        tuple(rows[:MAX_ROWS]),
        tuple(sentence_of(name, last, earlier) for name in columns),
        behind=left_behind(columns[0], now) if columns else "",
        silent=sum(not site.metrics for site in last.values()),
        hidden=max(0, len(rows) - MAX_ROWS),
    )
    if len(rounds) < 2 or not any(history.values()):
        return view
    return _with_multiples(view, columns[0], history)


def _with_multiples(view: SitesView, name: str, history: Mapping[str, Mapping[int, float]]) -> SitesView:
    told = {client: values for client, values in history.items() if values}
    numbers = [number for values in told.values() for number in values]
    finite = [value for values in told.values() for value in values.values()]
    first, last, low, high = min(numbers), max(numbers), min(finite), max(finite)
    now = {row.client: row.values[0] for row in view.rows}

    def path(values: Mapping[int, float]) -> str:
        points = []
        for number, value in values.items():
            x = MARGIN + (WIDTH - 2 * MARGIN) * ((number - first) / (last - first) if last > first else 0.5)
            share = (value / 2 - low / 2) / (high / 2 - low / 2) if high > low else 0.5
            points.append(f"{x:.4g},{HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN):.4g}")
        return "M" + "L".join(points if len(points) > 1 else points * 2)

    paths = {client: path(values) for client, values in told.items()}
    multiples = []
    for client in list(told)[:MAX_MULTIPLES]:
        number, value = list(told[client].items())[-1]
        words = f"{client}: {name} {show_number(value)} in round {number}, of {len(told[client])} evaluations"
        multiples.append(Multiple(client, paths[client], now[client], words))
    return SitesView(
        **{
            **vars(view),
            "title": name,
            "multiples": tuple(multiples),
            "undrawn": max(0, len(told) - MAX_MULTIPLES),
            "all_path": "".join(paths[client] for client in list(told)[:MAX_LINES]),
            "span": (show_number(low), show_number(high)),
        }
    )


def _by_round(rounds: Sequence[RoundRecord], client: str, name: str) -> dict[int, float]:
    found = {}
    for record in rounds:
        site = record.sites.get(client)
        if site is not None and math.isfinite(site.metrics.get(name, math.nan)):
            found[record.server_round] = site.metrics[name]
    return found


def _gained(values: Mapping[int, float], now: float | None) -> str:
    if len(values) < 2 or now is None or not math.isfinite(now):
        return ""
    change = now - next(iter(values.values()))
    return f"{'+' if change >= 0 else '−'}{show_number(abs(change))}"
