"""A round's metrics, made of those that its clients report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fl_ext.server.rejection import Reason, Rejection


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
    forms = [
        {(key, len(v) if isinstance(v, list) else -1) for key, v in of_client.items()}
        for of_client in metrics.values()
    ]
    common = set.intersection(*forms) if forms else set()
    odd = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            key,
            f"a metric of all {len(forms)} clients",
            f"{sum((key, length) in form for form in forms)} of them",
        )
        for client, form in sorted(zip(metrics, forms, strict=True))
        for key, length in sorted(form - common)
    ]
    return {key for key, _ in common}, odd
