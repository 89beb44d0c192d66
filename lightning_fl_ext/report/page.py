"""The report: one HTML page that stands alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

from lightning_fl_ext.metric_names import title_of
from lightning_fl_ext.report import charts, sites
from lightning_fl_ext.report.families import Family, group_metrics
from lightning_fl_ext.report.history import History, left_out
from lightning_fl_ext.report.participation import lay_out
from lightning_fl_ext.report.reasons import group_reasons
from lightning_fl_ext.report.scales import round_ticks, show_bytes, show_number
from lightning_fl_ext.report.settings import told_once
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.text import shown

_COUNTS = {"clients_accepted", "clients_rejected"}  # the table counts them in a column of its own
_NAMED = 3
_GRID_WIDTH = 1090  # what a page has room for, in CSS pixels


@dataclass(frozen=True)
class Tile:
    """A number to see at a glance.

    Attributes:
        name: What it is.
        value: The number, written out.
        detail: What belongs to it.
        trend: ``"better"``, ``"worse"``, ``"warns"`` or nothing.
    """

    name: str
    value: str
    detail: str
    trend: str = ""


def render_report(history: History, refresh: int = 0) -> str:
    """Write a run's report.

    The page holds its charts as SVG and its style, follows the reader's light or dark scheme, runs no script
    and loads nothing: its own content security policy forbids both. Everything in it that came from outside,
    such as names of clients and metrics, is escaped.

    Args:
        history: From :func:`~lightning_fl_ext.report.read_history`.
        refresh: Seconds after which a browser looks at the file again; 0 for never.

    Returns:
        HTML; the same for the same ledger, to the byte.

    Example:
        >>> from pathlib import Path
        >>> page = render_report(History(Path("runs/<first>")))
        >>> "<h1>&lt;first&gt;</h1>" in page, "<script" in page
        (True, False)
    """
    return render("page.html.jinja", SimpleNamespace(**_contents(history), refresh=refresh))


def render(template: str, page: SimpleNamespace) -> str:
    """Fill a template with a page's contents; everything is escaped.

    Args:
        template: Its name.
        page: What it shows.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment.get_template(template).render(
        page=page,
        box=SimpleNamespace(
            width=charts.WIDTH,
            height=charts.HEIGHT,
            left=charts.LEFT,
            right=charts.RIGHT,
            top=charts.TOP,
            bottom=charts.BOTTOM,
        ),
        style=Markup((files(__package__) / "templates" / "style.css").read_text(encoding="utf-8")),
    )


def _contents(history: History) -> dict[str, Any]:
    rounds = history.rounds
    families = group_metrics(rounds)
    columns = sorted({name for record in rounds for name in record.metrics} - _COUNTS)
    made = [charts.make_chart(family, rounds) for family in families]
    settings = sorted((k, v) for k, v in history.fingerprint.items() if not k.startswith("model."))
    settings += [(f"run.toml: {key}", value) for key, value in told_once(history)]
    tensors = [
        (k.removeprefix("model."), v) for k, v in history.fingerprint.items() if k.startswith("model.")
    ]
    grid = lay_out(rounds, history.clients, history.contributions)
    label = 18 + 7.4 * max(len("Client"), *(min(len(shown(row.client)), 20) for row in grid.rows), 0)
    count = 82 + 8 * max(len("Examples"), *(len(row.examples) for row in grid.rows), 0)  # behind each row
    cell = min(130.0, max(9.0, (_GRID_WIDTH - label - count) / max(1, len(rounds))))
    return {
        "name": history.name,
        "facts": _facts(history),
        "problems": history.problems,
        "head": history.head,
        "digest": history.digest,
        "tiles": _tiles(history, families),
        "charts": made,
        "has_events": any(chart.events for chart in made),
        "grid": grid,
        "grid_ticks": round_ticks(grid.numbers, max(1, int(cell * len(rounds) // 40))) if rounds else [],
        "grid_size": SimpleNamespace(
            label=label,
            cell=cell,
            gap=3 if cell > 14 else 1,
            width=math.ceil(label + cell * len(rounds) + count),
        ),
        "sites": sites.view_sites(rounds, history.told.get("monitor")),
        "site_size": SimpleNamespace(width=sites.WIDTH, height=sites.HEIGHT),
        "test": _test(history),
        "test_sites": history.test and sites.view_sites([history.test]),
        "rejected": group_reasons([rejection for record in rounds for rejection in record.rejected]),
        "columns": columns,
        "rounds": [
            SimpleNamespace(
                number=record.server_round,
                void=record.void,
                counted=f"{len(record.accepted)} of {len(record.sampled)}",
                values=[show_number(record.metrics.get(name)) for name in columns],
                digest=record.digest,
            )
            for record in rounds
        ],
        "settings": settings,
        "tensors": tensors,
    }


def _test(history: History) -> list[tuple[str, str]]:
    metrics = history.test.metrics if history.test else {}
    return [(name, show_number(value)) for name, value in sorted(metrics.items())]


def _facts(history: History) -> list[str]:
    strategy, seed = history.fingerprint.get("strategy"), history.fingerprint.get("seed")
    return [
        *([str(strategy)] if strategy is not None else []),
        *([f"seed {seed}"] if seed is not None else []),
        _count(len(history.clients), "client"),
        _count(len(history.rounds), "round"),
        "finished" if history.finished else "not finished",
    ]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _tiles(history: History, families: Sequence[Family]) -> list[Tile]:
    tiles = [_progress(family, history.rounds) for family in families if family.better][:3]
    void = sum(record.void for record in history.rounds)
    state = "all rounds are done" if history.finished else "not finished"
    tiles.append(
        Tile("Rounds", str(len(history.rounds)), f"{void} void" if void else state, "warns" if void else "")
    )
    out = Counter(r.client_id for record in history.rounds for r in left_out(record))
    named = [(shown(client, 16), times) for client, times in sorted(out.items())[:_NAMED]]
    who = ", ".join(f"client {name}" + (f" ({times}×)" if times > 1 else "") for name, times in named)
    more = f" and {len(out) - _NAMED} more" if len(out) > _NAMED else ""
    tiles.append(Tile("Left out", str(out.total()), f"{who}{more}" or "nobody", "warns" if out else ""))
    moved = {
        series.label: sum(v for v in series.values if math.isfinite(v))
        for family in families
        if family.is_bytes
        for series in family.series
    }
    if moved:
        parts = ", ".join(
            f"{show_bytes(total)} {label}" for label, total in sorted(moved.items(), reverse=True)
        )
        tiles.append(Tile("Data moved", show_bytes(sum(moved.values())), parts))
    return tiles


def _progress(family: Family, rounds: Sequence[RoundRecord]) -> Tile:
    """Show where a family's foremost metric stands, and where it started."""
    series = family.series[0]
    known = [(i, v) for i, v in enumerate(series.values) if math.isfinite(v)]
    (_, first), (place, last) = known[0], known[-1]
    change = (last - first) * family.better
    trend = "better" if change > 0 else "worse" if change < 0 else ""
    title = title_of(family.title)
    name = f"{title} ({series.label})" if len(family.series) > 1 else title
    start = f"from {show_number(first)} at first" if len(known) > 1 else "after the first round"
    if place == len(rounds) - 1:
        return Tile(name, show_number(last), start, trend)
    where = f"in round {rounds[place].server_round}"
    now = rounds[-1].metrics.get(series.name)
    if now is None:
        return Tile(name, show_number(last), f"{where}, {start}" if len(known) > 1 else where, trend)
    return Tile(name, show_number(now), f"{show_number(last)} {where}", "worse")
