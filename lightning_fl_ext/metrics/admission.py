"""Which metrics may be sent: checked before a run, without data."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torchmetrics import Metric
from torchmetrics.image import RootMeanSquaredErrorUsingSlidingWindow
from torchmetrics.regression import NormalizedRootMeanSquaredError
from torchmetrics.wrappers import BootStrapper, MetricTracker, Running
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_fl_ext.metrics.discovery import (
    covered,
    example_states,
    label,
    listed,
    named_metrics,
    own_states,
    require_known,
)
from lightning_fl_ext.metrics.errors import ExampleStatesNotAllowed, UnsupportedMetric

# class -> (why its states do not merge to the pooled value, what to use instead)
REFUSED: dict[type[nn.Module], tuple[str, str]] = {
    Running: (
        "it keeps a window over the last updates, and clients have no common order of updates",
        "Use the wrapped metric without `Running`",
    ),
    BootStrapper: (
        "each client resamples its own examples at random, which is not a resample of the pooled examples",
        "Use the wrapped metric without `BootStrapper`",
    ),
    MetricTracker: (
        "it keeps one metric per epoch of this process",
        "Use the tracked metric itself and track the merged values on the server",
    ),
    NormalizedRootMeanSquaredError: (
        "torchmetrics cannot reduce more than two sets of its states",
        "Use `MeanSquaredError(squared=False)` and divide by the normaliser",
    ),
    RootMeanSquaredErrorUsingSlidingWindow: (
        "torchmetrics keeps part of its sums outside its states",
        "Use `MeanSquaredError(squared=False)`",
    ),
}


def check_metrics(
    module: nn.Module,
    *,
    allow_example_states: Collection[str] = (),
    exclude_metrics: Collection[str] = (),
    names: Collection[str] | None = None,
) -> None:
    """Refuse what must not or cannot be sent; needs no data, so it can run at the start of a run.

    Args:
        module: The client's module.
        allow_example_states: Names of metrics (or of collections and wrappers, for all metrics inside)
            whose states with one row per example may leave this client.
        exclude_metrics: Names of metrics, in the same way, that stay on this client altogether.
        names: Check only these metrics; see `named_metrics`.

    Raises:
        UnsupportedMetric: If a metric's states cannot be merged to the pooled value.
        ExampleStatesNotAllowed: If a metric keeps one row per example and is not in `allow_example_states`.
        ValueError: If one of the names belongs to no metric, or if a metric is excluded from which another
            one that is sent is computed.
        TypeError: If a text is given where a tuple of texts is meant.

    Example:
        >>> from torchmetrics.classification import BinaryAUROC
        >>> check_metrics(nn.ModuleDict({"auroc": BinaryAUROC(thresholds=100)}))
        >>> check_metrics(nn.ModuleDict({"auroc": BinaryAUROC()}), exclude_metrics=("auroc",))
        >>> check_metrics(nn.ModuleDict({"auroc": BinaryAUROC()}))
        Traceback (most recent call last):
        ...
        lightning_fl_ext.metrics.errors.ExampleStatesNotAllowed: metric `auroc` (BinaryAUROC) keeps one row
        per example in `preds`, `target`, which do not leave the client. Give it `thresholds=100` (binned
        counts), or allow it: `allow_example_states=("auroc",)`, or leave it out:
        `exclude_metrics=("auroc",)`.
    """
    metrics = named_metrics(module)
    sent = named_metrics(module, names, exclude_metrics)
    require_known("allow_example_states", allow_example_states, metrics)
    _refuse_partial_exclusion(metrics, exclude_metrics)
    refuse_unsupported(module, sent)
    for name, metric in sent.items():
        rows = example_states(metric)
        if rows and not covered(name, allow_example_states):
            can_bin = hasattr(metric, "thresholds")
            remedy = (
                "Give it `thresholds=100` (binned counts)" if can_bin else "Take a metric that only counts"
            )
            raise ExampleStatesNotAllowed(
                f"{label(name, metric)} keeps one row per example in {listed(rows)}, which do not leave the "
                f'client. {remedy}, or allow it: `allow_example_states=("{name}",)`{_leave_out(name)}.'
            )


def refuse_unsupported(module: nn.Module, names: Collection[str]) -> None:
    """Refuse metrics whose states cannot be merged to the pooled value, on either side.

    Args:
        module: The client's or the server's module.
        names: The metrics that are sent. What holds one of them is looked at too.

    Raises:
        UnsupportedMetric: Names the metric, the reason and what to use instead.

    Example:
        >>> from torchmetrics import RunningMean
        >>> refuse_unsupported(nn.ModuleDict({"loss": RunningMean()}), ["loss"])
        Traceback (most recent call last):
        ...
        lightning_fl_ext.metrics.errors.UnsupportedMetric: metric `loss` (RunningMean) cannot be merged across
        clients: it keeps a window over the last updates, and clients have no common order of updates. Use the
        wrapped metric without `Running`, or leave it out: `exclude_metrics=("loss",)`.
    """
    for name, child in module.named_modules():
        if not any(covered(metric, (name,)) for metric in names):
            continue
        for refused, (reason, instead) in REFUSED.items():
            if isinstance(child, refused):
                raise UnsupportedMetric(
                    f"{label(name, child)} cannot be merged across clients: {reason}. "
                    f"{instead}{_leave_out(name)}."
                )
        if isinstance(child, WrapperMetric) and own_states(child):
            raise UnsupportedMetric(
                f"{label(name, child)} is a wrapper with states of its own ({listed(own_states(child))}), "
                "whose updates torchmetrics does not count. Derive it from `torchmetrics.Metric` instead"
                f"{_leave_out(name)}."
            )


def _refuse_partial_exclusion(metrics: dict[str, Metric], exclude_metrics: Collection[str]) -> None:
    """Refuse to leave out a metric without all that is computed from it, and all that it is computed from."""
    names = {id(metric): name for name, metric in metrics.items()}
    for whole, metric in metrics.items():
        for part in (names[id(part)] for part in metric.modules() if id(part) in names):
            if covered(whole, exclude_metrics) != covered(part, exclude_metrics):
                out, stays = (part, whole) if covered(part, exclude_metrics) else (whole, part)
                raise ValueError(
                    f"`exclude_metrics` leaves out `{out}`, but not `{stays}`; and `{whole}` is computed from"
                    f' `{part}`. Leave out both: `exclude_metrics=("{whole}", "{part}")`; or neither.'
                )


def _leave_out(name: str) -> str:
    return f', or leave it out: `exclude_metrics=("{name}",)`' if name else ""
