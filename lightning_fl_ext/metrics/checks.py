"""Whether one client's pack fits the server's module: checked before anything is merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torchmetrics import Metric

from lightning_fl_ext.metrics.configuration import class_path, configuration, reduction_name
from lightning_fl_ext.metrics.discovery import label, named_metrics, own_states
from lightning_fl_ext.metrics.errors import MetricMismatch
from lightning_fl_ext.metrics.metric_states import MetricPack, MetricStates, State, shorten

_KINDS = {"b": "bool", "i": "integer", "u": "integer", "f": "float"}


@dataclass(frozen=True)
class Declared:
    """What the server's metric expects of a pack; computed once for all clients."""

    metric: Metric
    class_path: str
    configuration: dict[str, str]


def declared_metrics(module: nn.Module) -> dict[str, Declared]:
    """What each metric of the server's module expects, by name."""
    return {
        name: Declared(metric, class_path(metric), configuration(metric))
        for name, metric in named_metrics(module).items()
    }


def check_pack(module: nn.Module, pack: MetricPack) -> None:
    """Refuse a pack that does not fit the metrics of `module`, so that one client can be left out.

    Args:
        module: The server's module.
        pack: One client's pack.

    Raises:
        MetricMismatch: If the pack names a metric that the module lacks, or one of another class or
            configuration, or with states of other names, kinds of number or shapes, or that are NaN (or
            infinite, where they are summed or averaged).

    Example:
        >>> from torchmetrics.classification import BinaryAccuracy
        >>> from lightning_fl_ext.metrics.gathering import pack_metrics
        >>> client = nn.ModuleDict({"acc": BinaryAccuracy(threshold=0.4)})
        >>> server = nn.ModuleDict({"acc": BinaryAccuracy()})
        >>> check_pack(server, pack_metrics(client, client_id="a"))
        Traceback (most recent call last):
        ...
        lightning_fl_ext.metrics.errors.MetricMismatch: client 'a', metric `acc` (BinaryAccuracy): other
        configuration than the server's.
          threshold: expected 0.5, got 0.4
        Build the metric with the same arguments, and use the same torchmetrics, everywhere. One that depends
        on each client's data has a weighted mean: `FederatedTrainer(average_metrics=('acc',))`, on the
        command line `--average-metrics acc`.
    """
    check_declared(declared_metrics(module), pack)


def check_declared(declared: dict[str, Declared], pack: MetricPack) -> None:
    """`check_pack` against `declared_metrics` of the server's module."""
    for mismatch in mismatches(declared, pack):
        raise mismatch


def mismatches(declared: dict[str, Declared], pack: MetricPack) -> Iterator[MetricMismatch]:
    """What `check_declared` refuses in a pack, metric by metric."""
    for name, sent in pack.metrics.items():
        if name not in declared:
            yield MetricMismatch(
                f"{pack}: the server's module has no metric {shorten(name)}. It has "
                f"{shorten(list(declared))}. Build the same module on both sides, with its metrics in "
                f"`__init__`, or leave this one out on the client: `exclude_metrics=({shorten(name)},)`.",
                client_id=pack.client_id,
                metric=name,
            )
        elif problem := _problem(name, declared[name], sent):
            yield MetricMismatch(
                f"{pack}, {label(name, declared[name].metric)}: {problem}",
                client_id=pack.client_id,
                metric=name,
            )


def _problem(name: str, declared: Declared, sent: MetricStates) -> str | None:
    """What is wrong with one metric of a pack."""
    if sent.class_path != declared.class_path:
        return f"other class than the server's: expected {declared.class_path}, got {sent.class_path}."
    keys = sorted(declared.configuration.keys() | sent.configuration.keys())
    ours, theirs = (
        dict.fromkeys(keys, "nothing") | dict(c) for c in (declared.configuration, sent.configuration)
    )
    differences = [
        f"  {key}: expected {ours[key]}, got {theirs[key]}" for key in keys if ours[key] != theirs[key]
    ]
    if differences:
        listed = "\n".join(differences)
        return (
            f"other configuration than the server's.\n{listed}\n"
            "Build the metric with the same arguments, and use the same torchmetrics, everywhere. One that"
            f" depends on each client's data has a weighted mean: `FederatedTrainer(average_metrics="
            f"({shorten(name)},))`, on the command line `--average-metrics {name}`."
        )
    if not sent.updates:
        return None
    expected = set(own_states(declared.metric))
    if set(sent.states) != expected:
        return f"expected the states {sorted(expected)}, got {sorted(sent.states)}."
    for state, value in sent.states.items():
        problem = _state_problem(declared.metric, state, value)
        if problem:
            return f"state `{state}`: {problem} Look at the data of this client, or leave it out."
    return None


def _state_problem(metric: Metric, state: str, value: State) -> str | None:
    default, kind = metric._defaults[state], reduction_name(metric, state)
    if isinstance(value, tuple) != isinstance(default, list):
        return f"expected a {'list' if isinstance(default, list) else 'tensor'}."
    if not isinstance(value, tuple) and not isinstance(default, list):
        number = "float" if default.is_floating_point() else _KINDS[np.dtype(str(default.dtype)[6:]).kind]
        if _KINDS[value.dtype.kind] != number:
            return f"expected {number} numbers, got {value.dtype.name}."
        leading = 1 if kind in ("none", "cat") else 0
        shape = value.shape[leading:]
        allowed = tuple(default.shape[1:] if kind == "cat" else default.shape)
        # A default with one element may have been broadcast by the first update.
        if value.ndim < leading or (shape != allowed and default.numel() != 1 and kind != "cat"):
            return f"expected shape {list(allowed)}, got {list(shape)}."
    for array in value if isinstance(value, tuple) else (value,):
        if np.isnan(array).any():
            return "got NaN."
        if kind in ("sum", "mean") and np.isinf(array).any():
            return "got an infinite number, which cannot be summed."
        if kind in ("sum", "mean") and array.dtype.kind == "f" and (np.abs(array) > _largest(array)).any():
            return f"got a number beyond {_largest(array):.3g}, so large that the clients' sum may overflow."
        if kind == "sum" and array.dtype.kind in "iu" and (np.abs(array.astype(np.float64)) > 2**53).any():
            return "got a count beyond 2^53, which no data has."
    return None


def _largest(array: NDArray[Any]) -> float:
    """The largest number to sum: a million of them fit the dtype of the sum."""
    return float(np.finfo(np.result_type(array.dtype, np.float32)).max) / 2**20
