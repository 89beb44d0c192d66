"""Metrics computed from the sum of all clients' states, of which no single one was seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.metrics.configuration import class_path, configuration
from lightning_fl_ext.metrics.discovery import named_metrics, own_states
from lightning_fl_ext.metrics.metric_states import MetricStates
from lightning_fl_ext.metrics.stage_metrics import StageMetrics
from lightning_fl_ext.metrics.summing import settings_digest
from lightning_fl_ext.server.metrics.pooling import Stages, pool_metrics
from lightning_fl_ext.text import shown

log = logging.getLogger(__name__)


def pool_sum(module: nn.Module, stages: Stages, server_round: int) -> dict[str, float]:
    """Compute metrics from summed states: the values on the pooled data.

    Args:
        module: Holds metrics like the clients'. It is left as it is.
        stages: What `read_sum` gives: one client's, who has the states of all.
        server_round: The current round.

    Returns:
        Values by logged name; none for a metric of which some state was not summed.
    """
    metrics = named_metrics(module)
    whole: dict[str, StageMetrics] = {}
    for stage, told in stages.items():
        if not told.pack.metrics:
            continue
        told = replace(told, pack=replace(told.pack, metrics=_known(metrics, told, server_round)))
        names = {name: found for name, found in told.names.items() if _is_whole(metrics, told, found[0])}
        whole[stage] = replace(told, names=names)
        for name in sorted(told.names.keys() - names.keys()):
            log.warning("`%s` of round %d is not known: not all of it was summed", shown(name), server_round)
    values, refused = pool_metrics(module, {"the sum": whole}, server_round)
    for rejection in refused:
        log.warning("%s", rejection)
    return values


def _known(metrics: Mapping[str, Metric], told: StageMetrics, server_round: int) -> dict[str, MetricStates]:
    """Give the metrics that are the server's own, with its settings."""
    known: dict[str, MetricStates] = {}
    for name, states in told.pack.metrics.items():
        metric = metrics.get(name)
        own = (class_path(metric), configuration(metric)) if metric is not None else ("", {})
        if settings_digest(*own) == states.class_path:
            known[name] = replace(states, class_path=own[0], configuration=own[1])
        else:
            log.warning(
                "metric `%s` of round %d is not the server's: build it with the same arguments, and use the"
                " same torchmetrics, everywhere",
                *(shown(name), server_round),
            )
    return known


def _is_whole(metrics: Mapping[str, Metric], told: StageMetrics, address: str) -> bool:
    """Tell whether all that a value is computed from is there: a composition has no states of its own."""
    metric = metrics.get(address.partition("[")[0])
    if metric is None:
        return False
    summed = {id(metrics[name]) for name in told.pack.metrics if name in metrics}
    parts = (part for part in metric.modules() if isinstance(part, Metric) and own_states(part))
    return all(id(part) in summed for part in parts)
