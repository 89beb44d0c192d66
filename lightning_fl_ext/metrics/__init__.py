"""Metrics across clients that equal the metrics on the pooled data.

One idea: what travels is the states of the torchmetrics objects, not their values. A client packs them
(`pack_metrics`, or `sync_and_pack` in several processes), the server merges all packs by the reductions
that the metrics themselves declare (`merge_metrics`), and the metrics then compute what they would on all
data.
"""

from lightning_fl_ext.metrics.admission import check_metrics
from lightning_fl_ext.metrics.checks import check_pack
from lightning_fl_ext.metrics.errors import (
    DamagedMetricPack,
    ExampleStatesNotAllowed,
    MetricMismatch,
    UnsupportedMetric,
)
from lightning_fl_ext.metrics.gathering import pack_metrics, sync_and_pack
from lightning_fl_ext.metrics.merging import merge_metrics, missing_clients
from lightning_fl_ext.metrics.metric_states import MetricPack, MetricStates

__all__ = [
    "DamagedMetricPack",
    "ExampleStatesNotAllowed",
    "MetricMismatch",
    "MetricPack",
    "MetricStates",
    "UnsupportedMetric",
    "check_metrics",
    "check_pack",
    "merge_metrics",
    "missing_clients",
    "pack_metrics",
    "sync_and_pack",
]
