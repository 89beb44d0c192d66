"""A strategy's own function of the clients' metrics, which counts on all of them telling the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import MetricRecord, RecordDict

from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.aggregation import WEIGHTED_MEAN, of_most
from lightning_fl_ext.wire.typed_records import records_of


@contextmanager
def seeing_most(
    strategy: Any,
    phase: str,
    key: str,
    contents: Mapping[str, RecordDict],
    updates: Mapping[str, ClientUpdate],
) -> Iterator[None]:
    """Have a user's function see the metrics that most clients report, of the clients that report them all.

    Without that, one client that leaves a metric out takes it from all replies, since a strategy wants the
    same of all, and the function fails. Flower's own mean is left alone.

    Args:
        strategy: Calls the function meanwhile.
        phase: ``"train"`` or ``"evaluate"``.
        key: The metric that weighs the clients.
        contents: Of each client's reply.
        updates: What was read in it.
    """
    attribute = f"{phase}_metrics_aggr_fn"
    function = getattr(strategy, attribute, None)
    names, whole = of_most({client: update.metrics for client, update in updates.items()})
    if function is None or function is WEIGHTED_MEAN or len(whole) in (0, len(updates)):
        yield
        return
    known = {id(contents[client]): client for client in contents}

    def of_those(given: Sequence[RecordDict], weighted_by: str) -> Any:
        seen = []
        for content in given:
            client = known.get(id(content))
            if client is None:
                seen.append(content)
            elif client in whole:
                update = updates[client]
                told: dict[str, Any] = {name: update.metrics[name] for name in sorted(names)}
                told[key] = update.num_examples
                (name,) = records_of(content, MetricRecord)
                seen.append(RecordDict({**content, name: MetricRecord(told)}))
        return function(seen, weighted_by)

    setattr(strategy, attribute, of_those)
    try:
        yield
    finally:
        setattr(strategy, attribute, function)
