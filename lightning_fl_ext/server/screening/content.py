"""What a reply holds, bounded before anything else looks at it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.server.screening.limits import ExpectedContent, Limits
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.server.screening.values import screen_name, shown_number

LARGEST_NUMBER = 1e250
"""No number of a client's is larger, so that no sum over clients and examples overflows."""

_DIMENSIONS = 64


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
