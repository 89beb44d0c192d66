"""What messages of the protocol hold, and how it is read without trust in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.masks import Words

Plain = dict[str, Any]
"""A message, or secrets at rest: integers, texts, bytes and lists of them, as Flower's records hold them."""


def message_fields(message: Mapping[str, Any], words: Words | None = None) -> list[bytes | memoryview]:
    """Give what a message's tag is over: all its fields by name, and the vector."""
    fields: list[bytes | memoryview] = []
    for name, value in sorted(message.items()):
        if name == "tag":
            continue
        fields += [name.encode(), value if isinstance(value, bytes) else _numbers(value)]
    if words is not None:
        fields.append(np.ascontiguousarray(words, "<u8").view(np.uint8).data)
    return fields


def joined(values: Iterable[bytes], size: int) -> bytes:
    """Join values of one size, as messages hold several.

    Raises:
        SecureAggregationError: One is of another size.
    """
    values = list(values)
    if any(len(value) != size for value in values):
        raise SecureAggregationError(f"expected {size} bytes each")
    return b"".join(values)


def parts(message: Mapping[str, Any], name: str, size: int, number: int) -> list[bytes]:
    """Read values that `joined` has joined.

    Args:
        message: Holds them.
        name: Under which name.
        size: Bytes of each.
        number: How many there must be.

    Raises:
        SecureAggregationError: There are more or fewer, or it is something else.
    """
    found = message.get(name)
    if not isinstance(found, bytes) or len(found) != size * number:
        raise SecureAggregationError(f"expected {number} times {size} bytes as `{name}`")
    return [found[i : i + size] for i in range(0, len(found), size)]


def members(message: Mapping[str, Any], name: str) -> list[int]:
    """Read a list of members' numbers, each once.

    Raises:
        SecureAggregationError: It is something else.
    """
    found = message.get(name)
    if not isinstance(found, list) or not all(type(j) is int and j >= 0 for j in found):
        raise SecureAggregationError(f"expected a list of clients as `{name}`")
    if len(set(found)) < len(found):
        raise SecureAggregationError(f"expected a list of clients as `{name}`, each once")
    return found


def _numbers(value: Any) -> bytes:
    """Give integers as eight bytes each."""
    numbers = value if isinstance(value, list) else [value]
    return struct.pack(f"<{len(numbers)}q", *numbers)
