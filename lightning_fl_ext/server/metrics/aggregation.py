"""A round's metrics, made of those that its clients report."""

from __future__ import annotations

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

_WEIGHTED_MEAN = FedAvg().evaluate_metrics_aggr_fn
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
    telling = {c: update.metrics for c, update in updates.items() if update.metrics or not _logs(stages[c])}
    _, odd = common_metrics(telling, server_round)
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
    plain = by_strategy | reduced if function is _WEIGHTED_MEAN else reduced | by_strategy
    return plain | pooled, left_out


def _logs(stages: Stages) -> bool:
    """Whether a client has metrics to tell of; without a number in its reply it keeps them to itself."""
    return any(stage.names or stage.scalars for stage in stages.values())


def common_metrics(
    metrics: Mapping[str, Mapping[str, Any]], server_round: int
) -> tuple[set[str], list[Rejection]]:
    """Find the metrics every client reports in the same form, and name the others.

    Args:
        metrics: By client id.
        server_round: The current round.

    Returns:
        The common keys, and a `Rejection` for every metric of a client that not all share. The updates
        themselves still count.

    Example:
        >>> common, odd = common_metrics({"a": {"loss": 1.0}, "b": {"loss": 2.0, "f1": 0.5}}, 3)
        >>> common, str(odd[0])
        ({'loss'}, 'client `b`, round 3: odd-metric, `f1`: expected a metric of all 2 clients, got 1 of them')
    """
    forms: list[set[tuple[str, int]]] = [
        {(key, len(v) if isinstance(v, list) else -1) for key, v in of_client.items()}
        for of_client in metrics.values()
    ]
    votes = Counter(form for of_client in forms for form in of_client)
    common = {form for form, count in votes.items() if count == len(forms)}
    odd = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            key,
            f"a metric of all {len(forms)} clients",
            f"{votes[key, length]} of them",
        )
        for client, form in sorted(zip(metrics, forms, strict=True))
        for key, length in sorted(form - common)
    ]
    return {key for key, _ in common}, odd
