"""`Limits`: what one reply may hold, checked before anything else looks at it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import nn

from lightning_fl_ext.aggregation.structure import MAX_WEIGHT
from lightning_fl_ext.arguments import whole_number
from lightning_fl_ext.metrics.discovery import example_states, named_metrics, own_states
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.screening.rejection import Reason, Rejected

LARGEST_NUMBER = 1e250
"""No number of a client's is larger, so that no sum over clients and examples overflows."""

ARRAY_HEADER = 4096
"""Bytes an array may take on the wire beyond its elements."""

_RANKS = 64  # processes of one client, each of which may add its own states
_DIMENSIONS = 64


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


def screen_size(content: RecordDict, limits: Limits, expected: ExpectedContent) -> None:
    """Refuse a reply that holds more than is warranted, without decoding anything.

    Whether metrics are finite and counts are counts is seen when they are read. Takes time in proportion to
    the reply, and no memory to speak of.

    Args:
        content: Of a reply, without its metric states.
        limits: The run's.
        expected: What the model and its metrics call for.

    Raises:
        Rejected: It goes beyond a limit; the reason is too-large, over-limit, odd-name or magnitude.

    Example:
        >>> screen_size(RecordDict({"a": ConfigRecord({"x": "y" * 9999})}), Limits(), ExpectedContent())
        Traceback (most recent call last):
        ...
        lightning_fl_ext.server.screening.rejection.Rejected: over-limit, `x`: expected at most 4096
        characters or bytes (`Limits.text`), got 9999
    """
    longest = max(limits.name, expected.longest_name)
    _at_most("records", len(content), limits.records, "records")
    arrays = metrics = numbers = entries = size = 0
    for name, record in content.items():
        screen_name(name, longest)
        if isinstance(record, ArrayRecord):
            arrays += len(record)
            _at_most("arrays", arrays, len(expected.names) + limits.arrays, "arrays", name)
            size += _size_of_arrays(record, expected, longest)
        elif isinstance(record, MetricRecord):
            metrics += len(record)
            _at_most("metrics", metrics, limits.metrics, "metrics", name)
            numbers += _count_numbers(record, longest)
            _at_most("numbers", numbers, limits.numbers, "numbers in metrics", name)
        elif isinstance(record, ConfigRecord):
            entries += sum(max(1, len(v)) if isinstance(v, list) else 1 for v in record.values())
            _at_most("entries", entries, limits.entries, "config entries", name)
            size += _size_of_config(record, limits, longest)
    most = expected.array_bytes + limits.extra_bytes
    if size > most:
        what = f"at most {most} bytes (the model's and `Limits.extra_bytes`)"
        raise Rejected(Reason.TOO_LARGE, "", what, f"{size}")


def screen_metric_states(record: Mapping[str, Any], limits: Limits, expected: ExpectedContent) -> None:
    """Refuse metric states of more bytes than the module's metrics call for.

    Args:
        record: Bytes by stage.
        limits: The run's.
        expected: What the metrics call for.

    Raises:
        Rejected: They go beyond a limit: they are left out, and the rest of the reply counts.
    """
    if len(record) > limits.entries:
        raise Rejected(Reason.METRIC, METRIC_STATES, f"at most {limits.entries} stages", f"{len(record)}")
    most = limits.metric_bytes + expected.state_bytes
    which = "metric_bytes"
    if expected.example_states:
        most, which = most + limits.example_bytes, "example_bytes"
    for data in record.values():
        size = len(data) if isinstance(data, bytes | str | list) else 0
        if size > most:
            what = f"at most {most} bytes of a stage (`Limits.{which}`)"
            raise Rejected(Reason.METRIC, METRIC_STATES, what, f"{size}")


def screen_name(name: Any, longest: int) -> None:
    """Refuse what cannot stand as a name in logs, files and ledgers.

    Args:
        name: A name.
        longest: Number of characters it may have.

    Raises:
        Rejected: It is too long, or holds what is not printable: control characters, marks that turn text
            round, halves of characters that no UTF-8 can hold.

    Example:
        >>> screen_name("val/läuft", 256)
    """
    if type(name) is not str:
        raise Rejected(Reason.NAME, "", "a text as a name", type(name).__name__)
    if len(name) > longest:
        what = f"a name of at most {longest} characters (`Limits.name`)"
        raise Rejected(Reason.NAME, name[:40], what, f"{len(name)}")
    if not name.isprintable():
        raise Rejected(Reason.NAME, name, "a name of printable characters", ascii(name))


def screen_count(key: str, count: Any, most: int = MAX_WEIGHT) -> int:
    """Take a count of examples.

    Args:
        key: What counts.
        count: What came for it.
        most: The largest that will do.

    Raises:
        Rejected: It is not a whole number from 0 on, or larger.
    """
    number = isinstance(count, int | float) and not isinstance(count, bool)
    if number and 0 <= count <= most and count == int(count):
        return int(count)
    raise Rejected(
        Reason.COUNT, key, f"a whole number up to {most}", "nothing" if count is None else shown_number(count)
    )


def shown_number(value: Any) -> str:
    """Write down what came in place of a number, however long.

    Example:
        >>> shown_number(10**5000), shown_number(2.5)
        ('a number of 16610 bits', '2.5')
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1024:
        return f"a number of {value.bit_length()} bits"
    return repr(value[:10] if isinstance(value, list | str | bytes) else value)


def _at_most(limit: str, count: int, most: int, what: str, key: str = "") -> None:
    if count > most:
        raise Rejected(Reason.OVER_LIMIT, key, f"at most {most} {what} (`Limits.{limit}`)", f"{count}")


def _size_of_arrays(record: ArrayRecord, expected: ExpectedContent, longest: int) -> int:
    size = 0
    for name, array in record.items():
        if name not in expected.names:
            screen_name(name, longest)
        if not _is_array(array):
            raise Rejected(Reason.UNDECODABLE, name, "an array with a shape of counts", "another")
        size += len(array.data) + len(array.dtype) + len(array.stype)
    return size


def _is_array(array: Array) -> bool:
    return (
        isinstance(array.data, bytes)
        and isinstance(array.dtype, str)
        and isinstance(array.stype, str)
        and len(array.dtype) <= 64
        and len(array.stype) <= 64
        and len(array.shape) <= _DIMENSIONS
        and all(type(length) is int and 0 <= length < 2**63 for length in array.shape)
    )


def _count_numbers(record: MetricRecord, longest: int) -> int:
    count = 0
    for name, value in record.items():
        screen_name(name, longest)
        values = value if isinstance(value, list) else [value]
        count += len(values)
        for number in values:
            if LARGEST_NUMBER < abs(number) < math.inf:
                largest = f"a metric of at most {LARGEST_NUMBER:g}"
                raise Rejected(Reason.MAGNITUDE, name, largest, shown_number(number))
    return count


def _size_of_config(record: ConfigRecord, limits: Limits, longest: int) -> int:
    size = 0
    for name, value in record.items():
        screen_name(name, longest)
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str | bytes):
                _at_most("text", len(entry), limits.text, "characters or bytes", name)
                size += len(entry)
            elif isinstance(entry, int) and entry.bit_length() > 63:
                raise Rejected(Reason.MAGNITUDE, name, "an integer of 64 bits", shown_number(entry))
    return size
