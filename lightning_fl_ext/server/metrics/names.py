"""Who owns a metric's name: the server, the module's metrics, or at least half of the clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from flwr.app import MetricRecord, RecordDict

from lightning_fl_ext.metrics.stage_metrics import StageMetrics
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.screening.rejection import Reason, Rejected, Rejection
from lightning_fl_ext.wire.typed_records import records_of

SERVER_PREFIXES = ("server_", "clients_", "bytes_")
"""What the server calls its own metrics."""

Owned = Callable[[str], bool]
"""Tells whether a name is the server's."""


def owned_by_server(names: Collection[str] = (), except_for: Collection[str] = ()) -> Owned:
    """Give a function that tells which names cannot come from a client.

    Args:
        names: Of metrics that callbacks make.
        except_for: Names that are not the server's all the same.

    Example:
        >>> owned = owned_by_server(["epsilon"])
        >>> [name for name in ("server_loss", "epsilon", "val_loss") if owned(name)]
        ['server_loss', 'epsilon']
    """
    taken, free = frozenset(names), frozenset(except_for)
    return lambda name: (name.startswith(SERVER_PREFIXES) or name in taken) and name not in free


def drop_owned(content: RecordDict, owned: Owned) -> set[str]:
    """Take metrics under the server's names out of a reply.

    Args:
        content: Of a reply whose names are names.
        owned: Tells whether a name is the server's.

    Returns:
        The names that were taken out.
    """
    dropped: set[str] = set()
    for record in records_of(content, MetricRecord).values():
        theirs = [name for name in record if owned(name)]
        for name in theirs:
            del record[name]
        dropped.update(theirs)
    return dropped


def without_owned(
    stages: Mapping[str, StageMetrics], owned: Owned
) -> tuple[dict[str, StageMetrics], set[str]]:
    """Take the server's names out of what a client tells of its metrics, and give those names."""
    kept = {stage: _keep(told, lambda name: not owned(name)) for stage, told in stages.items()}
    dropped = {name for told in stages.values() for name in (*told.names, *told.scalars) if owned(name)}
    return kept, dropped


def taken_out(names: Collection[str]) -> list[Rejected]:
    """Say once which of a client's names are the server's; nothing, if there are none."""
    if not names:
        return []
    first = sorted(names)[:3]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    expected, got = "a name that is not the server's own", f"{len(names)} such name(s)"
    return [Rejected(Reason.METRIC, ", ".join(first) + more, expected, got)]


def told_by_half(names: Sequence[Collection[str]]) -> set[str]:
    """Give the names that at least half of the clients tell.

    Example:
        >>> sorted(told_by_half([{"loss", "f1"}, {"loss"}, {"loss", "mine"}, {"f1"}]))
        ['f1', 'loss']
    """
    votes = Counter(name for told in names for name in set(told))
    return {name for name, count in votes.items() if 2 * count >= len(names)}


def keep_common(
    updates: Mapping[str, ClientUpdate],
    stages: Mapping[str, Mapping[str, StageMetrics]],
    of_module: Collection[str],
    server_round: int,
) -> tuple[dict[str, ClientUpdate], dict[str, dict[str, StageMetrics]], list[Rejection]]:
    """Keep the names that the module's metrics have, or that at least half of the clients report.

    A few clients cannot make a metric of a round, nor give a new name to one.

    Args:
        updates: What counts of each client's reply.
        stages: What each of these clients tells of its metrics.
        of_module: Names of the module's metrics.
        server_round: The current round.

    Returns:
        The same with those names alone, and what was left out.
    """
    reported = {
        client: {*update.metrics, *(n for s in stages[client].values() for n in (*s.names, *s.scalars))}
        for client, update in updates.items()
    }
    votes = Counter(name for names in reported.values() for name in names)

    def common(name: str) -> bool:
        return 2 * votes[name] >= len(updates) or name.partition("[")[0] in of_module

    left_out = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            name,
            f"a metric of all {len(updates)} clients",
            f"{votes[name]} of them",
        )
        for client, names in sorted(reported.items())
        for name in sorted(names - _of_unknown_metrics(stages[client], of_module))
        if not common(name)
    ]
    kept_updates = {
        client: replace(update, metrics={k: v for k, v in update.metrics.items() if common(k)})
        for client, update in updates.items()
    }
    kept_stages = {
        client: {stage: _keep(told, common) for stage, told in of_client.items()}
        for client, of_client in stages.items()
    }
    return kept_updates, kept_stages, left_out


def _of_unknown_metrics(stages: Mapping[str, StageMetrics], of_module: Collection[str]) -> set[str]:
    """Names that stand for metrics which the module lacks: for these the client's states are refused."""
    return {
        name
        for told in stages.values()
        for name, addresses in told.names.items()
        if any(
            (metric := a.partition("[")[0]) in told.pack.metrics and metric not in of_module
            for a in addresses
        )
    }


def _keep(told: StageMetrics, wanted: Callable[[str], bool]) -> StageMetrics:
    names = {name: found for name, found in told.names.items() if wanted(name)}
    scalars = {name: scalar for name, scalar in told.scalars.items() if wanted(name)}
    return replace(told, names=names, scalars=scalars)
