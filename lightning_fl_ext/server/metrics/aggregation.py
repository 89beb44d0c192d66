"""A round's metrics, made of those that its clients report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch import nn

from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.merging import linked_names
from lightning_fl_ext.server.metrics.names import keep_common
from lightning_fl_ext.server.metrics.pooling import Stages, pool_metrics, reduce_scalars
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

WEIGHTED_MEAN = FedAvg().evaluate_metrics_aggr_fn
"""What Flower's strategies do with metrics unless they are told otherwise."""


def aggregate_metrics(
    updates: Mapping[str, ClientUpdate],
    stages: Mapping[str, Stages],
    module: nn.Module,
    aggregated: MetricRecord | None,
    function: Callable[..., Any] | None,
    server_round: int,
    average_metrics: Collection[str] = (),
) -> tuple[dict[str, float], list[Rejection]]:
    """Pool metrics, reduce plain numbers, and say what takes part in neither.

    What a function of the user's own makes of the clients' numbers stands; where the strategy would average
    them like any others, they are reduced as the module says, over their own stage's examples.

    Args:
        updates: What counts of each client's reply; arrays do not matter.
        stages: The metric states of each of these clients.
        module: Holds metrics like the clients'.
        aggregated: What the strategy made of the clients' numbers.
        function: With what it made that.
        server_round: The current round.
        average_metrics: Names of metrics, or of what holds them, that are averaged instead of pooled.

    Returns:
        Metrics by name, and what was left out.
    """
    named = named_metrics(module)
    updates, stages, left_out = keep_common(updates, stages, named, server_round)
    reduced = reduce_scalars(updates, stages)
    pooled, refused = pool_metrics(module, stages, server_round, average_metrics)
    left_out += refused
    telling = {c: update for c, update in updates.items() if update.metrics or not _logs(stages[c])}
    _, odd = common_metrics({client: update.metrics for client, update in telling.items()}, server_round)
    left_out += [r for r in odd if r.key not in reduced and r.key not in pooled]
    left_out += [
        Rejection(client, server_round, Reason.METRIC, name, "metric states", "a value alone")
        for client in sorted(updates)
        for name in sorted(pooled.keys() & updates[client].metrics.keys())
        if not stages[client]
    ]
    averaged = linked_names(module, average_metrics) if average_metrics else set()
    left_out += [
        Rejection(client, server_round, Reason.METRIC, name, "a value to average", "kept by the client")
        for client, update in sorted(updates.items())
        for stage in (stages[client].values() if not update.metrics else ())
        for name, addresses in sorted(stage.names.items())
        if any(address.partition("[")[0] in averaged for address in addresses)
        and getattr(stage.scalars.get(name), "total", None) is None
    ]
    by_strategy = {k: float(v) for k, v in (aggregated or {}).items() if not isinstance(v, list)}
    if function is not WEIGHTED_MEAN:
        return reduced | by_strategy | pooled, left_out
    means = _means(telling) if aggregated is not None else {}
    return means | by_strategy | reduced | pooled, left_out


def _logs(stages: Stages) -> bool:
    """Whether a client has metrics to tell of; without a number in its reply it keeps them to itself."""
    return any(stage.names or stage.scalars for stage in stages.values())


def common_metrics(
    metrics: Mapping[str, Mapping[str, Any]], server_round: int
) -> tuple[set[str], list[Rejection]]:
    """Find the metrics every client reports in the same form, and name who differs in the others.

    Args:
        metrics: By client id.
        server_round: The current round.

    Returns:
        The common keys; and a `Rejection` for every other metric, of the clients that do not report it as
        most do, or, if it is not that of most, of those that report it. The updates themselves still count.

    Example:
        >>> common, odd = common_metrics({"a": {"loss": 1.0}, "b": {"loss": 2.0, "f1": 0.5}}, 3)
        >>> common, str(odd[0])
        ({'loss'}, 'client `b`, round 3: odd-metric, `f1`: expected a metric of all 2 clients, got 1 of them')
    """
    forms = {client: _forms(of_client) for client, of_client in metrics.items()}
    votes = Counter(form for of_client in forms.values() for form in of_client.items())
    usual = _usual(votes, len(forms))
    common = {form for form, count in votes.items() if count == len(forms)}
    lacking = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            key,
            f"{_form(length)}, as {votes[key, length]} of {len(forms)} clients report",
            _form(of_client.get(key)),
        )
        for client, of_client in sorted(forms.items())
        for key, length in sorted(usual.items())
        if of_client.get(key) != length
    ]
    alone = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            key,
            f"a metric of all {len(forms)} clients",
            f"{votes[key, length]} of them",
        )
        for client, of_client in sorted(forms.items())
        for key, length in sorted(of_client.items())
        if key not in usual
    ]
    return {key for key, _ in common}, lacking + alone


def of_most(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[set[str], list[str]]:
    """Give the metrics that more than half of the clients report in one form, and who reports all of these.

    Example:
        >>> names, clients = of_most({"a": {"loss": 1.0}, "b": {"loss": 2.0}, "c": {"loss": [2.0]}})
        >>> names, clients
        ({'loss'}, ['a', 'b'])
    """
    forms = {client: _forms(of_client) for client, of_client in metrics.items()}
    votes = Counter(form for of_client in forms.values() for form in of_client.items())
    usual = _usual(votes, len(forms))
    return {*usual}, [client for client, of_client in forms.items() if usual.items() <= of_client.items()]


def _means(updates: Mapping[str, ClientUpdate]) -> dict[str, float]:
    """Average the numbers that most clients report over those that do, weighted by their examples.

    Who reports a number in another form, or not at all, cannot take it from the others.
    """
    means: dict[str, float] = {}
    for name in sorted(of_most({client: update.metrics for client, update in updates.items()})[0]):
        told = [(u.num_examples, u.metrics[name]) for u in updates.values() if name in u.metrics]
        terms = [(n, value) for n, value in told if isinstance(value, int | float)]
        if 2 * len(terms) > len(updates):
            means[name] = math.fsum(n * value for n, value in terms) / sum(n for n, _ in terms)
    return means


def _forms(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Tell for each metric how long its list is; -1 for a number."""
    return {key: len(value) if isinstance(value, list) else -1 for key, value in metrics.items()}


def _usual(votes: Mapping[tuple[str, int], int], clients: int) -> dict[str, int]:
    return {key: length for (key, length), count in votes.items() if 2 * count > clients}


def _form(length: int | None) -> str:
    return "nothing" if length is None else "a number" if length < 0 else f"a list of {length}"
