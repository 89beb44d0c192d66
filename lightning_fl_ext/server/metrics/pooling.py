"""The clients' metric states, merged into metrics of the server's: the values on the pooled data."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_fl_ext.aggregation.structure import MAX_WEIGHT
from lightning_fl_ext.metrics import DamagedMetricPack, MetricPack, missing_clients
from lightning_fl_ext.metrics.bounded_json import JsonLimits
from lightning_fl_ext.metrics.computed_values import computed_values, copy_metrics
from lightning_fl_ext.metrics.discovery import covered
from lightning_fl_ext.metrics.stage_metrics import STAGES, Scalar, StageMetrics
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.absent import absent_classes
from lightning_fl_ext.server.metrics.merging import linked_names, merge_packs, without
from lightning_fl_ext.server.screening.limits import Limits
from lightning_fl_ext.server.screening.rejection import Reason, Rejected, Rejection
from lightning_fl_ext.server.screening.values import screen_count, screen_name
from lightning_fl_ext.text import listed, shown

log = logging.getLogger(__name__)

Stages = Mapping[str, StageMetrics]
"""One client's metrics by stage."""


def read_stages(
    record: Mapping[str, Any],
    declared: str,
    client_id: str,
    limits: Limits | None = None,
    most: Mapping[str, int] | None = None,
) -> dict[str, StageMetrics]:
    """Read the metric states in a reply.

    Args:
        record: Bytes by stage.
        declared: The name that the reply declares.
        client_id: The name that the sender is known by, which is another one if its node is registered.
        limits: For names and what describes the states.
        most: Examples that a stage can have at most, by stage; 2^26 unless told.

    Raises:
        Rejected: They are damaged, or go beyond a limit.
    """
    limits = limits or Limits()
    within = JsonLimits(limits.metric_header, limits.metric_entries, limits.depth)
    try:
        told = {
            s: StageMetrics.from_bytes(record[s], client_id=declared, limits=within)
            for s in STAGES
            if s in record
        }
        for name, stage in told.items():
            _screen_stage(stage, limits, (most or {}).get(name, MAX_WEIGHT))
    except DamagedMetricPack as error:
        raise Rejected(Reason.METRIC, "metric-states", "whole metric states", str(error)) from None
    except Rejected as why:
        raise Rejected(Reason.METRIC, f"metric-states, {why.key}", why.expected, why.got) from None
    return {s: replace(stage, pack=replace(stage.pack, client_id=client_id)) for s, stage in told.items()}


def _screen_stage(told: StageMetrics, limits: Limits, most: int) -> None:
    """Check the names and counts of a stage: no number is over more examples than the stage has.

    Raises:
        Rejected: One goes beyond a limit.
    """
    pack = told.pack
    for names in (told.names, told.scalars, pack.metrics, pack.excluded):
        if len(names) > limits.metrics:
            what = f"at most {limits.metrics} metrics (`Limits.metrics`)"
            raise Rejected(Reason.OVER_LIMIT, "", what, f"{len(names)}")
        for name in names:
            screen_name(name, limits.name)
    examples = screen_count("num_examples", most if pack.num_examples is None else pack.num_examples, most)
    for name, scalar in told.scalars.items():
        screen_count(name, scalar.num_examples, examples)
    for name, metric in pack.metrics.items():
        screen_count(f"updates of {name}", metric.updates)


def pool_metrics(
    module: nn.Module,
    clients: Mapping[str, Stages],
    server_round: int,
    average_metrics: Collection[str] = (),
) -> tuple[dict[str, float], list[Rejection]]:
    """Merge what the clients sent, stage by stage, and compute each metric under the names it is logged by.

    Args:
        module: Holds metrics like the clients'. It is left as it is.
        clients: The stages of each client.
        server_round: The current round.
        average_metrics: Names of metrics, or of what holds them, that are not to be pooled.

    Returns:
        Pooled values by logged name, NaN where there is none (no data, or none that could be merged); and
        whose states were left out and why.
    """
    averaged = linked_names(module, average_metrics)
    values: dict[str, float] = {}
    left_out: list[Rejection] = []
    for stage in STAGES:
        present = {client: stages[stage] for client, stages in sorted(clients.items()) if stage in stages}
        if not present:
            continue
        packs = {client: told.pack for client, told in present.items()}
        left_out += _missing(stage, clients, packs, server_round)
        packs = {client: without(pack, averaged) for client, pack in packs.items()}
        metrics = copy_metrics(module)
        merged, refused = merge_packs(metrics, packs, stage, server_round)
        left_out += refused
        pooled = _compute(metrics, server_round) if merged else {}
        sent = {name for pack in packs.values() for name in pack.metrics}
        told = {client: present[client] for client in merged or present}
        for name, addresses in _addresses(told).items():
            if all(_is_excluded(address, sent, packs) for address in addresses):
                continue
            values[name] = _agreed(name, {pooled[a] for a in addresses if a in pooled}, addresses)
    return values, left_out


_REDUCE: dict[str, Callable[[list[tuple[int, float]]], float]] = {
    "mean": lambda terms: math.fsum(total for _, total in terms) / sum(n for n, _ in terms),
    "sum": lambda terms: math.fsum(total for _, total in terms),
    "min": lambda terms: min(total for _, total in terms),
    "max": lambda terms: max(total for _, total in terms),
}


def reduce_scalars(updates: Mapping[str, ClientUpdate], clients: Mapping[str, Stages]) -> dict[str, float]:
    """Reduce plain numbers as the module reduces them over batches: means are weighted by examples.

    Args:
        updates: Each client's reply. A client that does not tell its numbers tells what they add.
        clients: The stages of each client. A client that does not tell how its number came about counts by
            the examples of its reply.

    Returns:
        Numbers that any client tells the story of, each over the clients that reduce it as most do; NaN if
        there is no majority. Names that `pool_metrics` has a value for are of metrics.

    Example:
        >>> def stages(client, examples):
        ...     logged = {"loss": Scalar("mean", examples), "errors": Scalar("sum", examples)}
        ...     return {"validate": StageMetrics(MetricPack({}, client, examples), {}, logged)}
        >>> updates = {"a": ClientUpdate({}, 9, metrics={"loss": 1.0, "errors": 2.0}),
        ...            "b": ClientUpdate({}, 9, metrics={"loss": 5.0, "errors": 1.0})}
        >>> reduce_scalars(updates, {"a": stages("a", 1), "b": stages("b", 3)})
        {'errors': 3.0, 'loss': 4.0}
    """
    told: dict[str, dict[str, Scalar]] = {}
    for client, stages in clients.items():
        for stage in (stages[stage] for stage in STAGES if stage in stages):
            for name, scalar in stage.scalars.items():
                told.setdefault(name, {}).setdefault(client, scalar)
    reduced: dict[str, float] = {}
    for name, by_client in sorted(told.items()):
        votes = Counter(scalar.reduction for scalar in by_client.values()).most_common()
        usual = votes[0][0]
        odd = sorted(client for client, scalar in by_client.items() if scalar.reduction != usual)
        if odd:
            log.warning("`%s` is reduced by %s, but not by client(s) %s", shown(name), usual, listed(odd))
        terms = [
            term
            for client, update in sorted(updates.items())
            if client not in odd and (term := _term(update, name, usual, by_client.get(client))) is not None
        ]
        if len(votes) > 1 and votes[1][1] == votes[0][1]:
            reduced[name] = math.nan
        elif terms:
            reduced[name] = float(_REDUCE[usual](terms))
    return reduced


def _term(update: ClientUpdate, name: str, reduction: str, scalar: Scalar | None) -> tuple[int, float] | None:
    """Give the examples of a client's number, and what it adds to the reduction; None if nothing."""
    examples = update.num_examples if scalar is None else scalar.num_examples
    value = update.metrics.get(name)
    if not examples:
        return None
    if isinstance(value, int | float):
        return examples, examples * value if reduction == "mean" else value
    return None if scalar is None or scalar.total is None else (examples, scalar.total)


def _missing(
    stage: str, clients: Mapping[str, Stages], packs: Mapping[str, MetricPack], server_round: int
) -> list[Rejection]:
    """Name the clients without metric states, or without those of some metrics that others sent."""
    sent = {name for pack in packs.values() for name in pack.metrics}
    too_few = missing_clients(packs.values())
    idle = sorted(c for c, told in clients.items() if stage == "validate" and told and stage not in told)
    return [
        *(Rejection(client, server_round, Reason.IDLE, got="no validation examples") for client in idle),
        *(
            Rejection(client, server_round, Reason.METRIC, stage, "metric states", "too few examples")
            for client in too_few
        ),
        *(
            Rejection(client, server_round, Reason.METRIC, entry, "metric states", "left out by the client")
            for client, pack in packs.items()
            for entry in pack.excluded
            if not pack.withheld and any(covered(name, (entry,)) for name in sent)
        ),
    ]


def _compute(module: nn.Module, server_round: int) -> dict[str, float]:
    values, problems = computed_values(module)
    for name, problem in problems.items():
        log.warning(
            "metric `%s` of round %d cannot be computed: %s", name, server_round, shown(problem, 1000)
        )
    for name, classes in absent_classes(module).items():
        text = (
            f"metric `{name}`: no client of round {server_round} has what it takes for class(es)"
            f" {listed(classes)}, and torchmetrics takes them for 0 in the mean over classes. With"
            " `average='weighted'` they count for nothing, with `average=None` each class has its value."
        )
        warn_once(log, "", text, topic=f"absent: {name}: {classes}")
    return values


def _addresses(clients: Mapping[str, StageMetrics]) -> dict[str, list[str]]:
    """Find out for each logged name which value it stands for: the one that most clients say.

    A metric is found under its name on every client that logs it. What is a plain scalar on most clients is
    one, even if it happens to equal a metric on some.
    """
    votes: dict[str, Counter[str | None]] = {}
    for told in clients.values():
        for name, addresses in told.names.items():
            votes.setdefault(name, Counter()).update(set(addresses))
        for name in set(told.scalars) - set(told.names):
            votes.setdefault(name, Counter()).update([None])
    found: dict[str, list[str]] = {}
    for name, count in sorted(votes.items()):
        most = max(count.values(), default=0)
        if count[None] < most:
            found[name] = sorted(address for address in count if address and count[address] == most)
    return found


def _is_excluded(address: str, sent: Collection[str], packs: Mapping[str, MetricPack]) -> bool:
    """Whether the metric at this address is one that every client leaves out."""
    metric = address.partition("[")[0]
    return metric not in sent and any(covered(metric, pack.excluded) for pack in packs.values())


def _agreed(name: str, values: set[float], addresses: list[str]) -> float:
    if len(values) > 1:
        log.warning(
            "`%s` may be the value of any of %s: log the metric object itself to have it pooled",
            *(shown(name), listed(addresses, named=10)),
        )
    return values.pop() if len(values) == 1 else math.nan
