"""Which metrics belong into one chart, by what their names have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_fl_ext.metric_names import better, by_importance, family_of, label_of, without_twins
from lightning_fl_ext.server.record import RoundRecord

_GATES = {"gate", "gates", "open"}


@dataclass(frozen=True)
class Series:
    """One metric over the rounds.

    Attributes:
        name: The metric's full name.
        label: What tells it apart from the others in its family.
        values: Its value in each round; NaN where there is none.
    """

    name: str
    label: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """Metrics of one kind, for one chart.

    Attributes:
        title: What they measure.
        series: The metrics: the server's first, then those of evaluations, then the rest by name.
        better: 1 if more is better, -1 if less is, 0 if neither is known.
        is_bytes: Whether they count bytes.
    """

    title: str
    series: tuple[Series, ...]
    better: int = 0
    is_bytes: bool = False


def group_metrics(rounds: Sequence[RoundRecord]) -> list[Family]:
    """Sort a run's metrics into families: scores first, then losses, the rest by name, bytes last.

    How many clients counted is left out: a picture of its own shows that by client. So is what Lightning logs
    twice, for steps and epochs of the same number.

    Args:
        rounds: Records of the rounds.

    Returns:
        The families whose metrics have a finite value in some round.
    """
    names = without_twins(sorted({name for record in rounds for name in record.metrics}))
    members: dict[str, list[Series]] = {}
    for name in names:
        values = tuple(record.metrics.get(name, math.nan) for record in rounds)
        if any(map(math.isfinite, values)):
            title = family_of(name)
            members.setdefault(title, []).append(Series(name, label_of(name, title), values))
    families = [
        Family(
            title,
            tuple(sorted(series, key=lambda one: by_importance(one.name))),
            better(title),
            title == "bytes",
        )
        for title, series in members.items()
        if title != "clients"
    ]
    return sorted(families, key=lambda family: (_rank(family), family.title))


def _rank(family: Family) -> int:
    if family.is_bytes:
        return 4
    return {1: 0, -1: 1}.get(family.better, 2 if set(family.title.split()) & _GATES else 3)
