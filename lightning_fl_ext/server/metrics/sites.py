"""How a model does at each site: what is kept of the sites' own values, and what is told across them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metric_names import ACROSS_SITES, foremost
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.record import SiteEvaluation
from lightning_fl_ext.text import shown


def keep_sites(
    updates: Mapping[str, ClientUpdate], measured: Collection[str], wanted: Collection[str], most: int
) -> dict[str, SiteEvaluation]:
    """Keep of each site's evaluation the numbers that the round has a metric of.

    Args:
        updates: What counts of each client's reply.
        measured: Names of the round's metrics.
        wanted: Names to keep in any case.
        most: How many names to keep besides: the foremost, the same for all sites.

    Returns:
        By client id, sorted. Of a site that does not tell its numbers, its count of examples alone.

    Example:
        >>> update = ClientUpdate({}, 9, metrics={"val_f1": 0.5, "made_up": 1.0})
        >>> keep_sites({"a": update}, ["val_f1", "val_loss"], (), most=8)
        {'a': SiteEvaluation(num_examples=9, metrics={'val_f1': 0.5})}
    """
    told = {name for update in updates.values() for name in update.metrics} & {*measured, *wanted}
    names = sorted({*foremost(told, count=most), *(told & {*wanted})})
    return {
        client: SiteEvaluation(
            update.num_examples,
            {n: float(v) for n in names if isinstance(v := update.metrics.get(n), int | float)},
        )
        for client, update in sorted(updates.items())
    }


def across_sites(sites: Mapping[str, SiteEvaluation], modes: Mapping[str, str]) -> dict[str, float]:
    """Tell the worst and the best value of any site, and how far they are apart.

    Where a site's value is no number, so is the worst one, and the spread.

    Args:
        sites: By client id.
        modes: By metric, whether a ``"min"`` or ``"max"`` of it is best.

    Example:
        >>> sites = {c: SiteEvaluation(9, {"val_f1": f1}) for c, f1 in (("a", 0.5), ("b", 0.75))}
        >>> across_sites(sites, {"val_f1": "max"})
        {'val_f1/worst': 0.5, 'val_f1/best': 0.75, 'val_f1/spread': 0.25}
    """
    told: dict[str, float] = {}
    for name, mode in modes.items():
        values = [site.metrics[name] for site in sites.values() if name in site.metrics]
        if values:
            ranked = sorted((v for v in values if not math.isnan(v)), reverse=mode == "min") or [math.nan]
            worst, best = ranked[0] if len(ranked) == len(values) else math.nan, ranked[-1]
            names = (f"{name}/{what}" for what in ACROSS_SITES)
            told |= dict(zip(names, (worst, best, abs(best - worst)), strict=True))
    return told


def require_sites(sites: Mapping[str, SiteEvaluation], modes: Mapping[str, str]) -> None:
    """Refuse to tell across sites what no site tells.

    Raises:
        LightningFLError: Says what they tell.
    """
    there = sorted({name for site in sites.values() for name in site.metrics})
    if missing := sorted(modes.keys() - {*there}):
        told = f"the sites tell {shown(there, 2000)}" if there else "no site tells any"
        raise LightningFLError(
            f"`site_metrics`: no site tells `{missing[0]}`; {told}. A site tells what its evaluation logs,"
            " unless its app has `share_metrics=False`; `fraction_evaluate` says how many are asked."
        )
