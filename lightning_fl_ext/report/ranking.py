"""Sites compared by a metric: which does worst, which best, and which is left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_fl_ext.metric_names import better, family_of, title_of
from lightning_fl_ext.report.scales import show_number
from lightning_fl_ext.server.record import SiteEvaluation

_NAMED = 3
_CLEARLY = 0.05  # of the middle site's value: sites that are nearer to it than that are as good


def badness(names: Sequence[str], site: SiteEvaluation) -> float:
    """Give what to order sites by, the worst first; those that tell nothing come last.

    Args:
        names: The metric, or none.
        site: A site's evaluation.
    """
    if not names or names[0] not in site.metrics:
        return math.inf
    value = site.metrics[names[0]]
    return -math.inf if math.isnan(value) else (better(family_of(names[0])) or 1) * value


def extremes(name: str, sites: Mapping[str, SiteEvaluation]) -> tuple[float, float] | None:
    """Give the worst and the best value; None if they are equal, or nothing says which is which."""
    values, without = _numbers(name, sites)
    sign = better(family_of(name))
    if not sign or not values or (values[0][0] == values[-1][0] and not without):
        return None
    (worst, _), (best, _) = (values[0], values[-1])[::sign]
    return (math.nan if without else worst), best


def _numbers(name: str, sites: Mapping[str, SiteEvaluation]) -> tuple[list[tuple[float, str]], list[str]]:
    """Give the values of a metric with their sites, ascending, and the sites whose value is no number."""
    told = sorted((client, site.metrics[name]) for client, site in sites.items() if name in site.metrics)
    numbers = sorted((value, client) for client, value in told if not math.isnan(value))
    return numbers, [client for client, value in told if math.isnan(value)]


def rank_of(value: float | None, ends: tuple[float, float] | None) -> str:
    """Tell whether a value is the ``"worst"`` or the ``"best"``, or neither."""
    if value is None or ends is None:
        return ""
    return "worst" if value == ends[0] or math.isnan(value) else "best" if value == ends[1] else ""


def sentence_of(name: str, sites: Mapping[str, SiteEvaluation], earlier: Mapping[str, int]) -> str:
    """Say which sites are worst and best by a metric, how far they are apart, and which have no number.

    Args:
        name: The metric.
        sites: The last evaluation of each.
        earlier: Of those whose last evaluation is of an earlier round than others', the round.

    Example:
        >>> sites = {c: SiteEvaluation(9, {"val_f1": f1}) for c, f1 in (("a", 0.5), ("b", 0.75))}
        >>> sentence_of("val_f1", sites, {"b": 2})
        'F1 (val_f1): worst 0.5 at a, best 0.75 at b (round 2), 0.25 apart.'
    """
    values, without = _numbers(name, sites)
    title = f"{title_of(family_of(name))} ({name})"
    none = f" No number at {_some(without)}." if without else ""
    if not values:
        return f"{title}:{none}"
    (low, lowest), (high, highest) = values[0], values[-1]
    if len(values) == 1:
        return f"{title}: {show_number(low)} at {lowest}, the one site that tells it.{none}"
    ends = [(low, lowest), (high, highest)]
    words = ("lowest", "highest")
    if (sign := better(family_of(name))) != 0:
        ends, words = ends[::sign], ("worst", "best")
    told = ", ".join(
        f"{word} {show_number(v)} at {who}" + (f" (round {earlier[who]})" if who in earlier else "")
        for word, (v, who) in zip(words, ends, strict=True)
    )
    return f"{title}: {told}, {show_number(high - low)} apart.{none}"


def _some(clients: Sequence[str]) -> str:
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f"{', '.join(clients[:_NAMED])}{more}"


def left_behind(name: str, sites: Mapping[str, SiteEvaluation]) -> str:
    """Name the sites that are further below the middle one than that is below the best, and clearly so."""
    sign = better(family_of(name))
    values = {client: sign * value for value, client in _numbers(name, sites)[0]}
    if not sign or len(values) < 3:
        return ""
    ranked = sorted(values.values())
    middle, best = ranked[len(ranked) // 2], ranked[-1]
    least = max(best - middle, _CLEARLY * abs(middle))
    far = [c for c, v in sorted(values.items(), key=lambda item: item[1]) if middle - v > least]
    if not far:
        return ""
    return (
        f"Left behind: {_some(far)}, further from the middle site"
        f" ({show_number(sign * middle)}) than that is from the best ({show_number(sign * best)})."
    )
