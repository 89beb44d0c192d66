"""Metric states for the server to pool: taken from a Trainer at the one moment where they can be seen.

Lightning resets a metric that was logged as an object right after the epoch's hooks, and users who compute
and reset by hand do so in the module's own hook. A callback's ``on_validation_epoch_end`` and
``on_test_epoch_end`` come before both, and so does ``on_train_epoch_end``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.metrics import MetricPack, MetricStates, check_metrics, merge_metrics, sync_and_pack
from lightning_fl_ext.metrics.configuration import class_path, configuration
from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.metrics.stage import StageMetrics
from lightning_fl_ext.metrics.values import computed_values, metrics_alone


@dataclass
class MetricCollector:
    """Takes the metrics' states of each stage of a fit or evaluation.

    Args:
        allow_example_states: Metrics whose states with one row per example may leave the client.
        min_examples: With fewer examples, a stage gives neither states nor values.
        active: Whether the server asked for metric states; else nothing is done.

    Attributes:
        kept_back: Logged names whose values must not go into the reply.
    """

    allow_example_states: Collection[str] = ()
    min_examples: int = 0
    active: bool = False
    kept_back: set[str] = field(default_factory=set)
    _before: dict[str, int] = field(default_factory=dict)
    _evaluated: set[str] = field(default_factory=set)
    _packs: dict[str, MetricPack | None] = field(default_factory=dict)

    def begin(self, module: nn.Module) -> None:
        """Forget the runs before, and refuse metrics whose states must not or cannot leave.

        Raises:
            ExampleStatesNotAllowed: A metric keeps one row per example.
            UnsupportedMetric: A metric's states cannot be merged.
        """
        self.kept_back, self._before, self._evaluated, self._packs = set(), {}, set(), {}
        if self.active:
            check_metrics(module, allow_example_states=self.allow_example_states)

    def evaluation_begins(self, module: nn.Module) -> None:
        """Note, before the first batch, what the metrics have seen: those of a training epoch are at work."""
        if self.active:
            self._before = {name: metric._update_count for name, metric in named_metrics(module).items()}

    def take(self, stage: str, trainer: Any, module: nn.Module, client_id: str, num_examples: int) -> None:
        """Pack the states of a stage. In several processes, every one of them calls this.

        Args:
            stage: ``"train"``, ``"validate"`` or ``"test"``.
            trainer: The Trainer.
            module: The LightningModule.
            client_id: The client's name.
            num_examples: Examples of the stage, over all processes.
        """
        if not self.active:
            return
        metrics = named_metrics(module)
        if stage == "train":
            others = self._evaluated & set(metrics)
        else:
            changed = self._changed(trainer, metrics)
            others = {name for name in metrics if self._before.get(name)} - changed
            self._evaluated |= changed
        pack = sync_and_pack(
            module,
            client_id=client_id,
            num_examples=num_examples,
            min_examples=self.min_examples,
            allow_example_states=self.allow_example_states,
            names=[name for name in metrics if name not in others],
        )
        if pack is not None and not pack.withheld:
            idle = {n: MetricStates(class_path(metrics[n]), configuration(metrics[n]), 0, {}) for n in others}
            pack = replace(pack, metrics={**idle, **pack.metrics})
        self._packs[stage] = pack

    def close(self, stage: str, trainer: Any, module: nn.Module) -> StageMetrics | None:
        """Find out by which names the module has logged the metrics of a stage. Every process calls this.

        Returns:
            What the stage tells; None in processes other than rank 0, and if nothing was taken.
        """
        logged, objects = _logged(trainer, named_metrics(module))
        pack = self._packs.pop(stage, None)
        if pack is None:
            return None
        names: dict[str, tuple[str, ...]] = {
            name: (metric,) for name, metric in objects.items() if name in logged
        }
        if pack.withheld:
            self.kept_back |= set(logged)
            return StageMetrics(pack, names, ())
        rest = {name: value for name, value in logged.items() if name not in names}
        if rest and pack.metrics:
            names |= _named_by_value(rest, pack, module, set(objects.values()))
        self.kept_back |= {name for name in names if not math.isfinite(logged[name])}
        return StageMetrics(pack, names, tuple(sorted(set(rest) - set(names))))

    def _changed(self, trainer: Any, metrics: Mapping[str, Metric]) -> set[str]:
        """Names of the metrics updated since the evaluation began, in any process."""
        changed = [metric._update_count != self._before.get(name, 0) for name, metric in metrics.items()]
        flags = torch.tensor(changed, dtype=torch.int)
        if trainer.world_size > 1 and metrics:
            flags = trainer.strategy.reduce(flags.to(trainer.strategy.root_device), reduce_op="sum")
        return {name for name, flag in zip(metrics, flags.tolist(), strict=True) if flag}


def _logged(trainer: Any, metrics: Mapping[str, Metric]) -> tuple[dict[str, float], dict[str, str]]:
    """Read the scalars logged in this stage, and which of them are metric objects of the module."""
    known = {id(metric): name for name, metric in metrics.items()}
    names, objects = set(), {}
    results = trainer._results
    for entry in (results or {}).values():
        for name in results._forked_name(entry, on_step=False):
            names.add(name)
            if id(getattr(entry, "value", None)) in known:
                objects[name] = known[id(entry.value)]
    values = trainer.callback_metrics
    return {n: float(values[n]) for n in sorted(names) if n in values and values[n].numel() == 1}, objects


def _named_by_value(
    logged: Mapping[str, float], pack: MetricPack, module: nn.Module, claimed: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Find the metrics whose values the module's own hook has logged."""
    values, _ = computed_values(merge_metrics(metrics_alone(module), [pack]))
    values = {address: value for address, value in values.items() if address not in claimed}
    found: dict[str, tuple[str, ...]] = {}
    if values:
        column = np.array(list(values.values()), dtype=np.float32)
        for name, value in logged.items():
            same = np.isclose(column, np.float32(value), rtol=1e-6, atol=0, equal_nan=True)
            if same.any():
                found[name] = tuple(address for address, hit in zip(values, same, strict=True) if hit)
    return found
