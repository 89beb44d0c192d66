"""Metric states for the server to pool: taken from a Trainer at the one moment where they can be seen.

Lightning resets a metric that was logged as an object right after the epoch's hooks, and users who compute
and reset by hand do so in the module's own hook. A callback's ``on_validation_epoch_end`` and
``on_test_epoch_end`` come before both, and so does ``on_train_epoch_end``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.client.metrics.logged import Logged, read_logged, used_in_training
from lightning_fl_ext.metrics import MetricPack, MetricStates, check_metrics, merge_metrics, sync_and_pack
from lightning_fl_ext.metrics.computed_values import computed_values, copy_metrics
from lightning_fl_ext.metrics.configuration import class_path, configuration
from lightning_fl_ext.metrics.discovery import covered, hidden_metrics, named_metrics, require_names
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics
from lightning_fl_ext.once import warn_once

log = logging.getLogger(__name__)


@dataclass
class MetricCollector:
    """Takes the metrics' states of each stage of a fit or evaluation.

    Args:
        allow_example_states: Metrics whose states with one row per example may leave the client.
        exclude_metrics: Metrics of which neither states nor values leave the client.
        min_examples: With fewer examples, a stage gives neither states nor values.
        share: Whether the client's own values are told; if not, only what adds to the pooled ones leaves.
        active: Whether the server asked for metric states; else nothing is done.

    Raises:
        TypeError: A text is given where a tuple of names is meant.
        ValueError: ``min_examples`` is negative.

    Attributes:
        withheld: Logged names whose values must not go into the reply.
    """

    allow_example_states: Collection[str] = ()
    exclude_metrics: Collection[str] = ()
    min_examples: int = 0
    share: bool = True
    active: bool = False
    withheld: set[str] = field(default_factory=set)
    _before: dict[str, int] = field(default_factory=dict)
    _evaluated: set[str] = field(default_factory=set)
    _shared: set[str] = field(default_factory=set)
    _taken: dict[str, _Taken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_names("allow_example_states", self.allow_example_states)
        require_names("exclude_metrics", self.exclude_metrics)
        if not isinstance(self.share, bool):
            raise TypeError(f"`share_metrics` must be True or False. Got {self.share!r}.")
        if not isinstance(self.min_examples, int) or self.min_examples < 0:
            raise ValueError(
                f"`min_examples` must be a whole number, not negative. Got {self.min_examples!r}."
            )

    def begin(self) -> None:
        """Forget the runs before."""
        self.withheld, self._before, self._evaluated = set(), {}, set()
        self._shared, self._taken = set(), {}

    def check(self, module: nn.Module) -> None:
        """Refuse metrics whose states must not or cannot leave.

        Raises:
            ExampleStatesNotAllowed: A metric keeps one row per example.
            UnsupportedMetric: A metric's states cannot be merged.
            ValueError: ``allow_example_states`` or ``exclude_metrics`` names no metric.
        """
        if not self.active:
            return
        check_metrics(
            module, allow_example_states=self.allow_example_states, exclude_metrics=self.exclude_metrics
        )
        for name in hidden_metrics(module):
            text = (
                f"`{name}` of {type(module).__name__} holds metrics in a plain list or dict, where no module"
                " finds them. What is logged of them is averaged like any number. Use a"
                " `torch.nn.ModuleDict` or `ModuleList`."
            )
            warn_once(log, "", text)

    def evaluation_begins(self, module: nn.Module) -> None:
        """Note, before the first batch, what the metrics have seen: those of a training epoch are at work."""
        if self.active:
            self._before = {name: metric._update_count for name, metric in named_metrics(module).items()}

    def take(self, stage: str, trainer: Any, module: nn.Module, examples: tuple[int, ...]) -> None:
        """Pack the states of a stage, without an id: the server knows whose they are.

        In several processes, every one of them calls this.

        Args:
            stage: ``"train"``, ``"validate"`` or ``"test"``.
            trainer: The Trainer.
            module: The LightningModule.
            examples: Examples of each dataloader in this stage, over all processes.
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
            if trainer.state.fn == "fit":
                self._note_shared(used_in_training(trainer, metrics, changed))
        excluded = {*self.exclude_metrics, *self._shared}
        pack = sync_and_pack(
            module,
            num_examples=sum(examples),
            min_examples=self.min_examples,
            allow_example_states=self.allow_example_states,
            exclude_metrics=excluded,
            names=[name for name in metrics if name not in others],
            group=_sharing_examples(trainer),
        )
        if pack is not None and not pack.withheld:
            idle = {
                name: MetricStates(class_path(metrics[name]), configuration(metrics[name]), 0, {})
                for name in others
                if not covered(name, excluded)
            }
            pack = replace(pack, metrics={**idle, **pack.metrics})
        kept = frozenset(name for name in metrics if covered(name, excluded))
        values = computed_values(copy_metrics(module), kept)[0] if kept else {}
        self._taken[stage] = _Taken(pack, examples, kept, values)

    def close(self, stage: str, trainer: Any, module: nn.Module) -> StageMetrics | None:
        """Find out by which names the module has logged the metrics of a stage. Every process calls this.

        Returns:
            What the stage tells; None in processes other than rank 0, and if nothing was taken.
        """
        taken = self._taken.pop(stage, _Taken(None))
        logged = read_logged(trainer, named_metrics(module), taken.examples)
        if taken.pack is None:
            return None
        names: dict[str, tuple[str, ...]] = {
            name: (entry.metric,) for name, entry in logged.items() if entry.metric is not None
        }
        if taken.pack.withheld:
            self._keep_back(logged.values())
            return StageMetrics(taken.pack, names, {})
        names |= _named_by_value(logged, taken, module)
        private = {*taken.kept, *taken.values}
        excluded = {name for name, addresses in names.items() if not private.isdisjoint(addresses)}
        undefined = {name for name in names if not math.isfinite(logged[name].value)}
        self._keep_back(logged[name] for name in excluded | undefined)
        scalars = {name: self._scalar(entry) for name, entry in logged.items() if name not in excluded}
        return StageMetrics(taken.pack, names, scalars)

    def told(self, values: Mapping[str, float]) -> dict[str, float]:
        """Choose of a client's numbers those that may be told."""
        return {k: v for k, v in values.items() if k not in self.withheld} if self.share else {}

    def _scalar(self, entry: Logged) -> Scalar:
        if self.share or entry.metric is not None or not math.isfinite(entry.value):
            return entry.scalar
        times = entry.scalar.num_examples if entry.scalar.reduction == "mean" else 1
        return entry.scalar._replace(total=times * entry.value)

    def _keep_back(self, entries: Iterable[Logged]) -> None:
        self.withheld |= {name for entry in entries for name in entry.logged_names}

    def _note_shared(self, shared: set[str]) -> None:
        for name in sorted(shared - self._shared):
            text = (
                f"metric `{name}` is logged in training and updated in validation too. Each mixes with the"
                " other, so it is left out of this fit's pooled metrics. Give each its own: `metric.clone()`."
            )
            warn_once(log, "", text)
        self._shared |= shared

    def _changed(self, trainer: Any, metrics: Mapping[str, Metric]) -> set[str]:
        """Names of the metrics updated since the evaluation began, in any process."""
        changed = [metric._update_count != self._before.get(name, 0) for name, metric in metrics.items()]
        flags = torch.tensor(changed, dtype=torch.int)
        if trainer.world_size > 1 and metrics:
            flags = trainer.strategy.reduce(flags.to(trainer.strategy.root_device), reduce_op="sum")
        return {name for name, flag in zip(metrics, flags.tolist(), strict=True) if flag}


@dataclass(frozen=True)
class _Taken:
    """What was taken of a stage: the pack, examples by dataloader, excluded metrics and their values."""

    pack: MetricPack | None
    examples: tuple[int, ...] = ()
    kept: frozenset[str] = frozenset()
    values: Mapping[str, float] = field(default_factory=dict)


def _sharing_examples(trainer: Any) -> Any:
    """Give the process group that shares the examples; None for all processes.

    Under tensor parallelism several processes work on the same ones.
    """
    if trainer.world_size < 2 or not hasattr(trainer.strategy, "device_mesh"):
        return None
    mesh = trainer.strategy.device_mesh
    return mesh.get_group("data_parallel") if "data_parallel" in (mesh.mesh_dim_names or ()) else None


def _named_by_value(
    logged: Mapping[str, Logged], taken: _Taken, module: nn.Module
) -> dict[str, tuple[str, ...]]:
    """Find the metrics whose values the module's own hook has logged; excluded ones among them."""
    numbers = {name: entry.value for name, entry in logged.items() if entry.metric is None}
    if not numbers or taken.pack is None:
        return {}
    sent, _ = computed_values(merge_metrics(copy_metrics(module), [taken.pack]), taken.pack.metrics)
    claimed = {entry.metric for entry in logged.values()}
    values = {a: value for a, value in {**sent, **taken.values}.items() if a not in claimed}
    column = np.array(list(values.values()), dtype=np.float32)
    found: dict[str, tuple[str, ...]] = {}
    for name, value in numbers.items():
        same = np.isclose(column, np.float32(value), rtol=1e-6, atol=0, equal_nan=True)
        if same.any():
            found[name] = tuple(address for address, hit in zip(values, same, strict=True) if hit)
    return found
