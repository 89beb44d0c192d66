"""Which metrics a module holds, and which of them may be sent: checked before a run, without data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from torchmetrics import Metric
from torchmetrics.image import RootMeanSquaredErrorUsingSlidingWindow
from torchmetrics.regression import NormalizedRootMeanSquaredError
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper, MetricTracker, Running
from torchmetrics.wrappers.abstract import WrapperMetric

from lightning_fl_ext.metrics.errors import ExampleStatesNotAllowed, UnsupportedMetric

# class -> (why its states do not merge to the pooled value, what to use instead)
REFUSED: dict[type[nn.Module], tuple[str, str]] = {
    Running: (
        "it keeps a window over the last updates, and clients have no common order of updates",
        "Use the wrapped metric without `Running`.",
    ),
    BootStrapper: (
        "each client resamples its own examples at random, which is not a resample of the pooled examples",
        "Use the wrapped metric without `BootStrapper`.",
    ),
    MetricTracker: (
        "it keeps one metric per epoch of this process",
        "Use the tracked metric itself, and track the merged values on the server.",
    ),
    NormalizedRootMeanSquaredError: (
        "torchmetrics cannot reduce more than two sets of its states",
        "Use `MeanSquaredError(squared=False)` and divide by the normaliser.",
    ),
    RootMeanSquaredErrorUsingSlidingWindow: (
        "torchmetrics keeps part of its sums outside its states",
        "Use `MeanSquaredError(squared=False)`.",
    ),
}


def named_metrics(module: nn.Module, names: Collection[str] | None = None) -> dict[str, Metric]:
    """Every torchmetrics metric inside `module`, by its name in `module.named_modules()`.

    Members of a `MetricCollection`, wrapped metrics and the operands of a compositional metric come one by
    one; wrappers and compositions are listed too. A metric that is reachable twice is listed once.

    Args:
        module: Any module; a metric itself has the name `""`.
        names: Only these metrics; the name of a collection or wrapper stands for all metrics inside it.

    Returns:
        Metrics in the order of `module.named_modules()`, which is the same in every process.

    Raises:
        ValueError: If one of `names` is no metric of the module and holds none.

    Example:
        >>> from torchmetrics import MetricCollection
        >>> from torchmetrics.classification import BinaryAccuracy, BinaryF1Score
        >>> module = nn.ModuleDict({"val": MetricCollection([BinaryAccuracy(), BinaryF1Score()])})
        >>> list(named_metrics(module))
        ['val.BinaryAccuracy', 'val.BinaryF1Score']
    """
    metrics = {name: child for name, child in module.named_modules() if isinstance(child, Metric)}
    if names is None:
        return metrics
    _require_known("names", names, metrics)
    return {name: metric for name, metric in metrics.items() if _covered(name, names)}


def own_states(metric: Metric) -> tuple[str, ...]:
    """Names of the states that `metric` itself keeps (wrappers and compositions keep none).

    Example:
        >>> from torchmetrics import MeanMetric
        >>> own_states(MeanMetric()), own_states(MeanMetric() + 1.0)
        (('mean_value', 'weight'), ())
    """
    # A ClasswiseWrapper shows the states of the metric it wraps as its own.
    return () if isinstance(metric, ClasswiseWrapper) else tuple(metric._defaults)


def example_states(metric: Metric) -> tuple[str, ...]:
    """Names of the states of `metric` with one row per example: lists, and whatever is concatenated.

    Example:
        >>> from torchmetrics.classification import BinaryAUROC
        >>> example_states(BinaryAUROC()), example_states(BinaryAUROC(thresholds=100))
        (('preds', 'target'), ())
    """
    return tuple(
        state
        for state in own_states(metric)
        if isinstance(metric._defaults[state], list) or metric._reductions[state] is dim_zero_cat
    )


def check_metrics(
    module: nn.Module,
    *,
    allow_example_states: Collection[str] = (),
    names: Collection[str] | None = None,
) -> None:
    """Refuse what must not or cannot be sent; needs no data, so it can run at the start of a run.

    Args:
        module: The client's module.
        allow_example_states: Names of metrics (or of collections and wrappers, for all metrics inside)
            whose states with one row per example may leave this client.
        names: Check only these metrics; see `named_metrics`.

    Raises:
        UnsupportedMetric: If a metric's states cannot be merged to the pooled value.
        ExampleStatesNotAllowed: If a metric keeps one row per example and is not in `allow_example_states`.
        ValueError: If a name in `allow_example_states` or `names` belongs to no metric.

    Example:
        >>> from torchmetrics.classification import BinaryAUROC
        >>> check_metrics(nn.ModuleDict({"auroc": BinaryAUROC(thresholds=100)}))
        >>> check_metrics(nn.ModuleDict({"auroc": BinaryAUROC()}))
        Traceback (most recent call last):
        ...
        lightning_fl_ext.metrics.errors.ExampleStatesNotAllowed: metric `auroc` (BinaryAUROC) keeps one row
        per example in `preds`, `target`, which do not leave the client. Give it `thresholds=100` (binned
        counts), or allow it: `allow_example_states=("auroc",)`.
    """
    refuse_unsupported(module, names)
    _require_known("allow_example_states", allow_example_states, named_metrics(module))
    for name, metric in named_metrics(module, names).items():
        rows = example_states(metric)
        if rows and not _covered(name, allow_example_states):
            can_bin = hasattr(metric, "thresholds")
            remedy = (
                "Give it `thresholds=100` (binned counts)" if can_bin else "Take a metric that only counts"
            )
            raise ExampleStatesNotAllowed(
                f"{label(name, metric)} keeps one row per example in {_listed(rows)}, which do not leave the "
                f'client. {remedy}, or allow it: `allow_example_states=("{name}",)`.'
            )


def refuse_unsupported(module: nn.Module, names: Collection[str] | None = None) -> None:
    """Refuse metrics whose states cannot be merged to the pooled value, on either side.

    Args:
        module: The client's or the server's module.
        names: Check only these metrics; see `named_metrics`.

    Raises:
        UnsupportedMetric: Names the metric, the reason and what to use instead.

    Example:
        >>> from torchmetrics import RunningMean
        >>> refuse_unsupported(nn.ModuleDict({"loss": RunningMean()}))
        Traceback (most recent call last):
        ...
        lightning_fl_ext.metrics.errors.UnsupportedMetric: metric `loss` (RunningMean) cannot be merged across
        clients: it keeps a window over the last updates, and clients have no common order of updates. Use the
        wrapped metric without `Running`.
    """
    selected = named_metrics(module, names)
    for name, child in module.named_modules():
        if not any(_covered(metric, (name,)) for metric in selected):
            continue
        for refused, (reason, instead) in REFUSED.items():
            if isinstance(child, refused):
                raise UnsupportedMetric(
                    f"{label(name, child)} cannot be merged across clients: {reason}. {instead}"
                )
        if isinstance(child, WrapperMetric) and own_states(child):
            raise UnsupportedMetric(
                f"{label(name, child)} is a wrapper with states of its own ({_listed(own_states(child))}), "
                "whose updates torchmetrics does not count. Derive it from `torchmetrics.Metric` instead."
            )


def label(name: str, metric: Any) -> str:
    """How messages name a metric.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> label("val_loss", MeanMetric())
        'metric `val_loss` (MeanMetric)'
    """
    return f"metric `{name}` ({type(metric).__name__})"


def _covered(name: str, allowed: Iterable[str]) -> bool:
    """Whether `name` is one of `allowed`, or lies inside one of them."""
    return any(not entry or name == entry or name.startswith(f"{entry}.") for entry in allowed)


def _require_known(argument: str, given: Iterable[str], metrics: Iterable[str]) -> None:
    known = tuple(metrics)
    for entry in given:
        if not any(_covered(name, (entry,)) for name in known):
            raise ValueError(
                f"`{argument}` names `{entry}`, which is no metric of the module. "
                f"Its metrics: {_listed(known)}."
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
