"""Reading a message's content without holding on to it."""

from __future__ import annotations

from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord, MetricRecord)


def records_of(content: RecordDict, kind: type[RecordT]) -> dict[str, RecordT]:
    """Give the records of one kind, by name.

    Flower's own views (``content.array_records`` and its like) are parts of reference cycles, so that whoever
    looks at a reply through one keeps all its arrays until the next garbage collection.

    Example:
        >>> records_of(RecordDict({"a": ConfigRecord({"x": 1}), "b": MetricRecord()}), ConfigRecord)
        {'a': {'x': 1}}
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}
