"""Metric states for the server to pool: taken from a Trainer at the one moment where they can be seen.

Lightning resets a metric that was logged as an object right after the epoch's hooks, and users who compute
and reset by hand do so in the module's own hook. A callback's ``on_validation_epoch_end`` and
``on_test_epoch_end`` come before both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.metrics import MetricPack, check_metrics, sync_and_pack
from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.metrics.stage import StageMetrics


@dataclass
class MetricCollector:
    """Takes the metrics' states of each stage of a fit or evaluation.

    Args:
        allow_example_states: Metrics whose states with one row per example may leave the client.
        min_examples: With fewer examples a stage gives no states.
        active: Whether the server asked for metric states; else nothing is done.
    """

    allow_example_states: Collection[str] = ()
    min_examples: int = 0
    active: bool = False
    _busy: set[str] = field(default_factory=set)
    _open: dict[str, tuple[MetricPack | None, dict[str, tuple[str, ...]], dict[str, float]]] = field(
        default_factory=dict
    )

    def check(self, module: nn.Module) -> None:
        """Refuse, before any work is done, metrics whose states must not or cannot leave.

        Raises:
            ExampleStatesNotAllowed: A metric keeps one row per example.
            UnsupportedMetric: A metric's states cannot be merged.
        """
        if self.active:
            check_metrics(module, allow_example_states=self.allow_example_states)

    def evaluation_starts(self, module: nn.Module) -> None:
        """Note which metrics are in the middle of a training epoch: they are no part of the evaluation."""
        self._busy = {name for name, metric in named_metrics(module).items() if metric._update_count}

    def take(self, stage: str, trainer: Any, module: nn.Module, client_id: str, num_examples: int) -> None:
        """Pack the states of a stage. In several processes, every one of them calls this.

        Args:
            stage: ``"train"``, ``"validate"`` or ``"test"``.
            trainer: The Trainer.
            module: The LightningModule.
            client_id: The client's name.
            num_examples: Examples of the stage, over all processes.
        """
        metrics = named_metrics(module)
        names = [n for n in metrics if n not in self._busy] if stage != "train" else list(metrics)
        if not self.active or not names:
            return
        pack = sync_and_pack(
            module,
            client_id=client_id,
            num_examples=num_examples,
            min_examples=self.min_examples,
            allow_example_states=self.allow_example_states,
            names=names,
        )
        logged = _logged_objects(trainer, metrics)
        claimed = {name for found in logged.values() for name in found}
        values = {name: _value(metrics[name]) for name in names if name not in claimed}
        self._open[stage] = (pack, logged, {name: v for name, v in values.items() if v is not None})

    def close(self, stage: str, trainer: Any) -> StageMetrics | None:
        """Find out by which names the module has logged the metrics of a stage.

        Returns:
            What the stage tells; None in processes other than rank 0, and if nothing was taken.
        """
        pack, logged, values = self._open.pop(stage, (None, {}, {}))
        if pack is None:
            return None
        keys = _logged_keys(trainer)
        for key, value in keys.items():
            if key not in logged and (found := tuple(name for name, v in values.items() if v == value)):
                logged[key] = found
        return StageMetrics(pack, logged, tuple(sorted(set(keys) - set(logged))))


def _logged_objects(trainer: Any, metrics: Mapping[str, Metric]) -> dict[str, tuple[str, ...]]:
    of = {id(metric): name for name, metric in metrics.items()}
    found: dict[str, tuple[str, ...]] = {}
    for entry in (getattr(trainer, "_results", None) or {}).values():
        if id(getattr(entry, "value", None)) in of:
            found[entry.meta.name] = (of[id(entry.value)],)
    return found


def _logged_keys(trainer: Any) -> dict[str, float]:
    results = getattr(trainer, "_results", None)
    if results is None:
        return {}
    logged = {entry.meta.name for entry in results.values()}
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name in logged and value.numel() == 1
    }


def _value(metric: Metric) -> float | None:
    """Compute what the module's own hook will compute; torchmetrics keeps it, so it costs nothing twice."""
    if not metric._update_count:
        return None
    try:
        value = metric.compute()
    except (RuntimeError, ValueError):  # too few examples for this metric, say
        return None
    return float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else None
