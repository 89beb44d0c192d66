"""Which metrics a module holds, by which names, and what kind of states they keep."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.wrappers import ClasswiseWrapper


def named_metrics(
    module: nn.Module, names: Collection[str] | None = None, exclude_metrics: Collection[str] = ()
) -> dict[str, Metric]:
    """Every torchmetrics metric inside `module`, by its name in `module.named_modules()`.

    Members of a `MetricCollection`, wrapped metrics and the operands of a compositional metric come one by
    one; wrappers and compositions are listed too. A metric that is reachable twice is listed once.

    Args:
        module: Any module; a metric itself has the name `""`.
        names: Only these metrics; the name of a collection or wrapper stands for all metrics inside it.
        exclude_metrics: Not these, named in the same way.

    Returns:
        Metrics in the order of `module.named_modules()`, which is the same in every process.

    Raises:
        TypeError: If `names` or `exclude_metrics` is a text instead of a tuple of texts.
        ValueError: If one of these names is no metric of the module and holds none.

    Example:
        >>> from torchmetrics import MetricCollection
        >>> from torchmetrics.classification import BinaryAccuracy, BinaryF1Score
        >>> module = nn.ModuleDict({"val": MetricCollection([BinaryAccuracy(), BinaryF1Score()])})
        >>> list(named_metrics(module))
        ['val.BinaryAccuracy', 'val.BinaryF1Score']
        >>> list(named_metrics(module, exclude_metrics=("val.BinaryF1Score",)))
        ['val.BinaryAccuracy']
    """
    metrics = {name: child for name, child in module.named_modules() if isinstance(child, Metric)}
    require_known("names", names or (), metrics)
    require_known("exclude_metrics", exclude_metrics, metrics)
    return {
        name: metric
        for name, metric in metrics.items()
        if (names is None or covered(name, names)) and not covered(name, exclude_metrics)
    }


def weights_of(module: nn.Module, state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Give a module's state dict, with ``None`` in the place of what belongs to its metrics.

    That is everything below a torchmetrics metric but trainable parameters: states that were made
    persistent, constants, a frozen network that computes features. It is not part of the model.

    Args:
        module: Any module.
        state: Its state dict, if it was gathered from shards. By default the module's own.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> module = nn.ModuleDict({"layer": nn.Linear(1, 1, bias=False), "loss": MeanMetric()})
        >>> module["loss"].persistent(True)
        >>> weights_of(module)
        {'layer.weight': tensor(...), 'loss.mean_value': None, 'loss.weight': None}
    """
    inside = [
        unwrapped(name)
        for name, child in module.named_modules(remove_duplicate=False)
        if name and isinstance(child, Metric)
    ]
    trained = {unwrapped(n) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {
        name: None if name not in trained and covered(name, inside) else value
        for name, value in (module.state_dict() if state is None else state).items()
    }


def unwrapped(name: str) -> str:
    """Give the name in a state dict of what FSDP1 and activation checkpointing have wrapped.

    Example:
        >>> unwrapped("net._fsdp_wrapped_module.0._checkpoint_wrapped_module.weight")
        'net.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def hidden_metrics(module: nn.Module) -> list[str]:
    """Names of plain lists, tuples and dicts that hold metrics, where no module finds them.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> module = nn.Module()
        >>> module.losses = {"val": MeanMetric()}
        >>> hidden_metrics(module), list(named_metrics(module))
        (['losses'], [])
    """
    found = []
    for name, child in module.named_modules():
        if isinstance(child, Metric | MetricCollection):
            continue  # what they keep besides their states is their own affair
        for attribute, value in vars(child).items():
            values = value.values() if isinstance(value, dict) else value
            if (
                attribute != "_modules"
                and isinstance(value, list | tuple | dict)
                and any(isinstance(entry, Metric | MetricCollection) for entry in values)
            ):
                found.append(f"{name}.{attribute}" if name else attribute)
    return found


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


def label(name: str, metric: Any) -> str:
    """How messages name a metric.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> label("val_loss", MeanMetric()), label("", MeanMetric())
        ('metric `val_loss` (MeanMetric)', 'metric (MeanMetric)')
    """
    return f"metric `{name}` ({type(metric).__name__})" if name else f"metric ({type(metric).__name__})"


def covered(name: str, given: Iterable[str]) -> bool:
    """Tell whether `name` is one of the `given` names, or lies inside one of them.

    Example:
        >>> covered("val.f1", ("val",)), covered("val_f1", ("val",))
        (True, False)
    """
    return any(not entry or name == entry or name.startswith(f"{entry}.") for entry in given)


def require_names(argument: str, given: Any) -> None:
    """Refuse one text where a tuple of texts is meant, whose letters would be taken for names.

    Raises:
        TypeError: Says how to write it.
    """
    if isinstance(given, str) or not all(isinstance(entry, str) for entry in given):
        example = f'`{argument}=("{given}",)`' if isinstance(given, str) else "texts"
        raise TypeError(f"`{argument}` must be a tuple of names: {example}. Got {given!r}.")


def require_known(argument: str, given: Iterable[str], metrics: Iterable[str]) -> None:
    """Refuse names that stand for no metric.

    Raises:
        TypeError: `given` is a text.
        ValueError: One of them names no metric; says which metrics there are.
    """
    require_names(argument, given)
    known = tuple(metrics)
    for entry in given:
        if not any(covered(name, (entry,)) for name in known):
            raise ValueError(
                f"`{argument}` names `{entry}`, which is no metric of the module. "
                f"Its metrics: {listed(known)}."
            )


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    return ", ".join(f"`{name}`" for name in names) or "none"
