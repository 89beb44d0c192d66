"""Packs of many clients into one module: what cannot be merged is left out alone, and named."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.failures import described
from lightning_fl_ext.metrics import MetricMismatch, MetricPack
from lightning_fl_ext.metrics.checks import declared_metrics, mismatches
from lightning_fl_ext.metrics.discovery import covered, named_metrics
from lightning_fl_ext.metrics.merging import merge_checked
from lightning_fl_ext.server.screening.rejection import Reason, Rejected, Rejection

log = logging.getLogger(__name__)


def merge_packs(
    module: nn.Module, packs: Mapping[str, MetricPack], stage: str, server_round: int
) -> tuple[list[str], list[Rejection]]:
    """Merge all that can be. A metric of a client that cannot be is left out, and its other metrics count.

    Args:
        module: Its metrics are written to.
        packs: By client.
        stage: The stage they are of, for messages.
        server_round: The current round.

    Returns:
        The clients of whom anything counts, and which metrics of whom do not.
    """
    good: dict[str, MetricPack] = {}
    refused: list[Rejection] = []

    def refuse(client: str, error: Exception) -> None:
        metric: str | None = getattr(error, "metric", None)
        said = str(error) if isinstance(error, MetricMismatch) else described(error)
        got = " ".join(said.removeprefix(str(packs[client])).lstrip(",: ").split())
        why = Rejected(Reason.METRIC, metric or stage, got=got)
        refused.append(Rejection(client, server_round, why.reason, why.key, why.expected, why.got))
        if metric is None:
            good.pop(client, None)
        elif client in good:
            good[client] = without(good[client], linked_names(module, [metric]))

    declared = declared_metrics(module)
    for client, pack in packs.items():
        if not pack.withheld:
            good[client] = pack
        for error in mismatches(declared, pack):
            refuse(client, error)
    while good:
        try:
            merge_checked(module, good.values())
            break
        except Exception as error:  # a reduction of the user's own may raise anything
            named = str(getattr(error, "client_id", None))
            odd = named if named in good else _without_whom(module, good)
            if odd is not None:
                refuse(odd, error)
                continue
            log.warning("%s of round %d cannot be pooled: %s", stage, server_round, described(error))
            metric = getattr(error, "metric", None)
            if metric is None:
                return [], refused
            spoilt = linked_names(module, [metric])
            good = {client: without(pack, spoilt) for client, pack in good.items()}
    return list(good), refused


def linked_names(module: nn.Module, given: Collection[str]) -> set[str]:
    """Give the names of metrics, and of all that is computed from them or that they are computed from.

    Args:
        module: Holds the metrics.
        given: Names of metrics, or of what holds them.

    Example:
        >>> from torchmetrics import MeanMetric, MinMaxMetric, SumMetric
        >>> metrics = {"best": MinMaxMetric(MeanMetric()), "total": SumMetric()}
        >>> sorted(linked_names(nn.ModuleDict(metrics), ["best"]))
        ['best', 'best._base_metric']
    """
    metrics = named_metrics(module)
    parts = {
        name: {id(m) for m in metric.modules() if isinstance(m, Metric)} for name, metric in metrics.items()
    }
    names = {name for name in metrics if covered(name, given)}
    known = -1
    while known < len(names):
        known = len(names)
        held = set().union(*(parts[name] for name in names))
        names |= {name for name in metrics if not held.isdisjoint(parts[name])}
    return names | set(given)


def without(pack: MetricPack, names: Iterable[str]) -> MetricPack:
    """Give a pack that leaves these metrics out."""
    left_out = set(names)
    if not left_out or pack.withheld:
        return pack
    metrics = {name: states for name, states in pack.metrics.items() if not covered(name, left_out)}
    return replace(pack, metrics=metrics, excluded=(*pack.excluded, *sorted(left_out)))


def _without_whom(module: nn.Module, packs: Mapping[str, MetricPack]) -> str | None:
    """Find the one client without whose pack the others merge; None if there is none, or not one alone."""
    found = []
    for client in packs if len(packs) > 2 else ():
        try:
            merge_checked(module, [pack for other, pack in packs.items() if other != client])
        except Exception:
            continue
        found.append(client)
    return found[0] if len(found) == 1 else None
