"""The metrics of a phase: what clients share, what a sum says, what is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

from flwr.app import MetricRecord

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.aggregation import aggregate_metrics, common_metrics
from lightning_fl_ext.server.metrics.names import without_owned
from lightning_fl_ext.server.metrics.pooled_sum import pool_sum
from lightning_fl_ext.server.rounds.fit_parts import FitParts
from lightning_fl_ext.server.rounds.messages import Reply, RoundMessages
from lightning_fl_ext.server.rounds.metrics_functions import seeing_most
from lightning_fl_ext.server.rounds.quorum import innermost
from lightning_fl_ext.server.rounds.strategy_calls import read_from
from lightning_fl_ext.server.screening.rejection import Rejection
from lightning_fl_ext.server.strategies.secure_round import SecureOutcome


def take_outcome(
    parts: FitParts, messages: RoundMessages, summaries: dict[str, ClientUpdate], metrics: MetricRecord | None
) -> tuple[SecureOutcome, dict[str, ClientUpdate], MetricRecord | None]:
    """Learn whose updates are in the sum that a secure strategy made, and name the others."""
    outcome: SecureOutcome = parts.trainer.strategy.take_outcome()  # type: ignore[attr-defined]
    for node, why in sorted(outcome.left_out.items(), key=lambda left: parts.clients[left[0]]):
        messages.leave_out(parts.clients[node], why)
    messages.bytes_up += outcome.bytes_up
    survivors = {parts.clients[node] for node in outcome.survivors}
    outcome.stages = without_owned(outcome.stages, parts.owned)[0]
    theirs = metrics and MetricRecord({k: v for k, v in metrics.items() if not parts.owned(k)})
    return outcome, {c: summary for c, summary in summaries.items() if c in survivors}, theirs


def shared_metrics(parts: FitParts, summaries: Mapping[str, ClientUpdate]) -> set[str]:
    """Name the metrics that all clients have."""
    metrics = {client: summary.metrics for client, summary in summaries.items()}
    return common_metrics(metrics, 0)[0] | {parts.calls.count_key}


def seeing_most_of(
    parts: FitParts, phase: str, replies: Iterable[Reply], summaries: Mapping[str, ClientUpdate]
) -> AbstractContextManager[None]:
    """Have a user's metrics function see the clients that report what most do; under masks it sees none."""
    if parts.calls.secure:
        return nullcontext()
    contents = {client: reply.content for client, reply, _ in replies}
    return seeing_most(innermost(parts.trainer.strategy), phase, parts.calls.count_key, contents, summaries)


def measure(
    parts: FitParts,
    messages: RoundMessages,
    summaries: Mapping[str, ClientUpdate],
    aggregated: MetricRecord | None,
    outcome: SecureOutcome | None,
) -> tuple[dict[str, float], list[Rejection]]:
    """Give the metrics of a phase, and what of them was left out.

    Raises:
        LightningFLError: They cannot be made.
    """
    function = parts.calls.metrics_function(messages.phase)
    stages = {client: messages.stages.get(client, {}) for client in summaries}
    number = messages.server_round
    try:
        averaged = parts.trainer.average_metrics
        found, left_out = aggregate_metrics(
            summaries, stages, parts.metrics, aggregated, function, number, averaged
        )
        return found | pool_sum(parts.metrics, outcome.stages if outcome else {}, number), left_out
    except Exception as error:
        raise LightningFLError(
            f"the metrics of round {number} cannot be made: {described(error)}.{read_from(summaries)}"
        ) from error
