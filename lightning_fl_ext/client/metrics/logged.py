"""What a module has logged in a stage: by which names, from which metric, reduced how."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchmetrics import Metric

from lightning_fl_ext.metrics.stage_metrics import Scalar


@dataclass(frozen=True)
class Logged:
    """One number under one name.

    Attributes:
        value: The number.
        metric: Name of the metric object that was logged; None if a number was.
        scalar: How the number came about.
        logged_names: All names under which it, or its value of the last step, stands in ``callback_metrics``.
    """

    value: float
    metric: str | None
    scalar: Scalar
    logged_names: frozenset[str]


def read_logged(trainer: Any, metrics: Mapping[str, Metric], examples: tuple[int, ...]) -> dict[str, Logged]:
    """Read the numbers logged in the current stage. Every process calls this: some may be reduced here.

    Args:
        trainer: The Trainer.
        metrics: The module's metrics by name.
        examples: Examples of each dataloader in this stage.

    Returns:
        By name, sorted. A value logged on steps and epochs stands under its name and once more with
        ``_epoch``; that of the last step is not among them.
    """
    known = {id(metric): name for name, metric in metrics.items()}
    values = trainer.callback_metrics
    found: dict[str, Logged] = {}
    results = trainer._results
    for entry in (results or {}).values():
        names = frozenset(results._forked_name(entry, on_step=False))
        logged_names = names | set(results._forked_name(entry, on_step=True))
        metric = known.get(id(getattr(entry, "value", None)))
        scalar = Scalar(_reduction(entry.meta), _examples(entry.meta.dataloader_idx, examples))
        for name in names:
            if name in values and values[name].numel() == 1:
                found[name] = Logged(float(values[name]), metric, scalar, logged_names)
    return dict(sorted(found.items()))


def count_in_floats(trainer: Any) -> None:
    """Let means over several processes come out right: Lightning would average their counts as integers.

    Two processes with 26 and 25 examples have 25.5 on average, of which an integer keeps 25. Call it after
    each batch, since an entry is there from the first on that logs it.
    """
    if trainer.world_size > 1:
        for entry in (trainer._results or {}).values():
            if entry.is_tensor and entry.meta.is_mean_reduction:
                entry.cumulated_batch_size = entry.cumulated_batch_size.to(entry.value.dtype)


def told_by_one_rank(trainer: Any) -> list[str]:
    """Name what is logged per epoch without ``sync_dist``: its value is that of rank 0's examples alone."""
    return _names(
        entry
        for entry in (trainer._results or {}).values()
        if entry.is_tensor and entry.meta.on_epoch and not _is_meant(entry)
    )


def told_by_one_batch(trainer: Any, pooled: Collection[Metric]) -> list[str]:
    """Name what a training logs on steps alone: its value is that of rank 0's last batch.

    The step values of an evaluation are not among them: they reach loggers alone.

    Args:
        trainer: The Trainer.
        pooled: Metrics whose states the server gets, and computes their values from.
    """
    results = trainer._results
    if not results or not results.training:
        return []
    known = {id(metric) for metric in pooled}
    steps = [entry for entry in results.values() if entry.meta.on_step and not entry.meta.on_epoch]
    numbers = [entry for entry in steps if entry.is_tensor and not _is_meant(entry)]
    objects = [entry for entry in steps if not entry.is_tensor and id(entry.value) not in known]
    return _names(numbers + [entry for entry in objects if not entry.value.dist_sync_on_step])


def _is_meant(entry: Any) -> bool:
    """Tell whether a number is over all processes, or rank 0's by its own word."""
    return bool(entry.meta.sync.should or entry.meta.sync.rank_zero_only)


def _names(entries: Iterable[Any]) -> list[str]:
    return sorted({entry.meta.name for entry in entries})


def used_in_training(trainer: Any, metrics: Mapping[str, Metric], updated: Collection[str]) -> set[str]:
    """Find out which metrics a fit logs as objects in training, and updates in an evaluation as well.

    Args:
        trainer: The Trainer, in a fit.
        metrics: The module's metrics by name.
        updated: Names of those that the evaluation has updated.

    Returns:
        Their names, and those of all that is computed from them or that they are computed from.
    """
    results = trainer.fit_loop.epoch_loop._results
    logged = [entry.value for entry in results.values() if isinstance(entry.value, Metric)]
    changed = {id(metrics[name]) for name in updated}
    shared = {id(metric) for metric in logged if _holds(metric, changed)}
    known = -1
    while known < len(shared):  # until no wrapper or composition is shared in part
        known = len(shared)
        shared |= {id(part) for m in metrics.values() if _holds(m, shared) for part in m.modules()}
    return {name for name, metric in metrics.items() if id(metric) in shared}


def _holds(metric: Metric, ids: Collection[int]) -> bool:
    return any(id(part) in ids for part in metric.modules())


def _reduction(meta: Any) -> str:
    for kind in ("sum", "min", "max"):
        if getattr(meta, f"is_{kind}_reduction"):
            return kind
    return "mean"


def _examples(dataloader_idx: int | None, examples: tuple[int, ...]) -> int:
    if dataloader_idx is None or dataloader_idx >= len(examples):
        return sum(examples)
    return examples[dataloader_idx]
