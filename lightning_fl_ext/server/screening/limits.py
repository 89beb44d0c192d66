"""`Limits`: what one reply may hold."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from lightning_fl_ext.arguments import whole_number
from lightning_fl_ext.metrics.discovery import example_states, named_metrics, own_states
from lightning_fl_ext.results import Arrays

ARRAY_HEADER = 4096
"""Bytes an array may take on the wire beyond its elements."""

_RANKS = 64  # processes of one client, each of which may add its own states


@dataclass(frozen=True)
class Limits:
    """What one reply of a client may hold. What holds more is left out before it is read any further.

    The model warrants its own arrays, and the metrics of the server's module their own states; these are
    limits on what comes besides. Raise one by its name.

    Args:
        records: Records.
        arrays: Arrays more than the model has.
        metrics: Metrics, and names of metrics in metric states.
        numbers: Numbers in all metrics together, those in lists among them.
        entries: Entries of config records, metric states aside, those in lists among them.
        name: Characters of a name: of a record, an array, a metric, a config entry, a client.
        text: Characters or bytes of a value in a config record.
        extra_bytes: Bytes more than the model's arrays and metric states call for.
        metric_bytes: Bytes of metric states more than those of the module's metrics that are of fixed size.
        example_bytes: Bytes of metric states that hold one row per example; counts if the module has such.
        metric_header: Bytes of the text that describes the metric states of one stage.
        metric_entries: Values and containers in that text.
        depth: How deeply that text may be nested.
        weight: Magnitude of a weight, unless the global model has it as it is. The squares of such, over all
            weights of a model, are numbers of single precision, in which Flower's strategies compute.
        site_metrics: Metrics of a client's evaluation that a round's record keeps, besides those that
            `FederatedTrainer(site_metrics=)` names; the same names for all clients.

    Raises:
        TypeError: One is not a whole number.
        ValueError: One is negative.

    Example:
        >>> Limits(metrics=5000).metrics, Limits().metrics
        (5000, 1000)
    """

    records: int = 16
    arrays: int = 1000
    metrics: int = 1000
    numbers: int = 10_000
    entries: int = 1000
    name: int = 256
    text: int = 4096
    extra_bytes: int = 2**20
    metric_bytes: int = 2**22
    example_bytes: int = 2**28
    metric_header: int = 2**20
    metric_entries: int = 100_000
    depth: int = 16
    weight: int = 2**48
    site_metrics: int = 32

    def __post_init__(self) -> None:
        for each in fields(self):
            whole_number(f"limits.{each.name}", getattr(self, each.name), 0)


@dataclass(frozen=True)
class ExpectedContent:
    """What a reply may hold, going by the model and the metrics of the server's module.

    Attributes:
        names: Names of the arrays that a client sends.
        array_bytes: Their bytes.
        state_bytes: Bytes of metric states of fixed size, of one stage of a client of several processes.
        example_states: Whether a metric keeps one row per example.
        metrics: Names of the module's metrics.
        longest_name: Of all these names, and of those of the metrics' states.
    """

    names: Collection[str] = ()
    array_bytes: int = 0
    state_bytes: int = 0
    example_states: bool = False
    metrics: frozenset[str] = field(default_factory=frozenset)
    longest_name: int = 0

    @classmethod
    def of(cls, arrays: Arrays, module: nn.Module, wire: Arrays | None = None) -> ExpectedContent:
        """Tell what is warranted.

        Args:
            arrays: Like a client's.
            module: Holds the server's metrics.
            wire: What the server sends; a client's arrays may be as large.
        """
        sizes = [sum(array.nbytes + ARRAY_HEADER for array in a.values()) for a in (arrays, wire or {})]
        metrics = named_metrics(module)
        states: list[Any] = [m._defaults[s] for m in metrics.values() for s in own_states(m)]
        fixed = sum(8 * state.numel() for state in states if not isinstance(state, list))
        names = [*arrays, *(f"{name}/{s}" for name, m in metrics.items() for s in ("", *own_states(m)))]
        return cls(
            arrays.keys(),
            max(sizes),
            _RANKS * fixed,
            any(map(example_states, metrics.values())),
            frozenset(metrics),
            max(map(len, names), default=0),
        )
