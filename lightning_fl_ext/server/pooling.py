"""The clients' metric states, merged into the server's module: the values on the pooled data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_fl_ext.metrics import MetricMismatch, MetricPack, merge_metrics, missing_clients
from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.metrics.stage import STAGES, StageMetrics
from lightning_fl_ext.server.rejection import Reason, Rejection

log = logging.getLogger(__name__)


def pool_metrics(
    module: nn.Module, clients: Mapping[str, Mapping[str, StageMetrics]], server_round: int
) -> tuple[dict[str, float], list[Rejection]]:
    """Merge what the clients sent, stage by stage, and compute each metric under the names it is logged by.

    Args:
        module: The server's own module; its metrics are overwritten.
        clients: The stages of each client.
        server_round: The current round.

    Returns:
        Pooled values by logged name (scalars; others can be computed from the module's metrics), and whose
        states were left out and why.
    """
    values: dict[str, float] = {}
    left_out: list[Rejection] = []
    for stage in STAGES:
        present = {client: stages[stage] for client, stages in clients.items() if stage in stages}
        if not present:
            continue
        packs = {client: metrics.pack for client, metrics in present.items()}
        left_out += [
            Rejection(client, server_round, Reason.METRIC, stage, "metric states", "too few examples")
            for client in missing_clients(packs.values())
        ]
        merged, refused = _merge(module, packs, stage, server_round)
        left_out += refused
        counted = {client: present[client] for client in merged if not packs[client].withheld}
        values |= _by_logged_name(module, counted, stage)
    return values, left_out


def average_scalars(
    metrics: Mapping[str, Mapping[str, Any]], clients: Mapping[str, Mapping[str, StageMetrics]], stage: str
) -> dict[str, float]:
    """Average the plain scalars of a stage, weighted by that stage's examples.

    Args:
        metrics: All metrics of each client's reply.
        clients: The stages of each client.
        stage: Such as ``"validate"``.

    Returns:
        Means of the scalars that every client with this stage reports.

    Example:
        >>> def stages(client, examples):
        ...     return {"validate": StageMetrics(MetricPack({}, client, examples), {}, ("loss",))}
        >>> losses = {"a": {"loss": 1.0}, "b": {"loss": 5.0}}
        >>> average_scalars(losses, {"a": stages("a", 1), "b": stages("b", 3)}, "validate")
        {'loss': 4.0}
    """
    having = {c: s[stage] for c, s in clients.items() if stage in s and s[stage].pack.num_examples}
    if not having:
        return {}
    shared = set.intersection(*(set(m.scalars) & set(metrics.get(c, {})) for c, m in having.items()))
    weights = {client: int(m.pack.num_examples or 0) for client, m in having.items()}
    return {
        name: math.fsum(weights[c] * metrics[c][name] for c in sorted(having)) / sum(weights.values())
        for name in sorted(shared)
    }


def _merge(
    module: nn.Module, packs: Mapping[str, MetricPack], stage: str, server_round: int
) -> tuple[list[str], list[Rejection]]:
    good = dict(packs)
    refused: list[Rejection] = []
    while good:
        try:
            merge_metrics(module, good.values())
            break
        except MetricMismatch as error:
            client = error.client_id
            if client is None or client not in good:
                log.warning("the metrics of round %d (%s) cannot be pooled: %s", server_round, stage, error)
                return [], refused
            del good[client]
            where = f"{stage}: {error.metric}" if error.metric else stage
            refused.append(
                Rejection(client, server_round, Reason.METRIC, where, "the server's metric", str(error))
            )
    return list(good), refused


def _by_logged_name(module: nn.Module, clients: Mapping[str, StageMetrics], stage: str) -> dict[str, float]:
    metrics = named_metrics(module)
    values: dict[str, float] = {}
    for name in sorted({name for stage_metrics in clients.values() for name in stage_metrics.names}):
        candidates = set.intersection(*(set(m.names[name]) for m in clients.values() if name in m.names))
        found = {c: v for c in sorted(candidates & set(metrics)) if (v := _scalar(metrics[c])) is not None}
        if len(set(found.values())) == 1:
            values[name] = next(iter(found.values()))
        elif found:
            log.warning(
                "`%s` (%s) may be any of the metrics %s: log the metric object itself to have it pooled",
                *(name, stage, ", ".join(f"`{c}`" for c in found)),
            )
    return values


def _scalar(metric: Any) -> float | None:
    if not metric.update_called:
        return None
    metric._computed = None
    value = metric.compute()
    return float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else None
