"""What messages of the protocol hold, and how it is read without trust in it."""

from __future__ import annotations

from collections.abc import Mapping
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
        items = value if isinstance(value, list) else [value]
        fields += [name.encode(), len(items).to_bytes(8, "little")]
        fields += [v if isinstance(v, bytes) else int(v).to_bytes(8, "little", signed=True) for v in items]
    if words is not None:
        fields.append(np.ascontiguousarray(words, "<u8").view(np.uint8).data)
    return fields


def members(message: Mapping[str, Any], name: str) -> list[int]:
    """Read a list of members' numbers."""
    found = message.get(name)
    if not isinstance(found, list) or not all(type(j) is int and j >= 0 for j in found):
        raise SecureAggregationError(f"expected a list of clients as `{name}`")
    return found


def pairs(message: Mapping[str, Any], keys: str, values: str) -> tuple[list[int], list[bytes]]:
    """Read a list of members' numbers, each once, and what belongs to each."""
    found, of = message.get(values), members(message, keys)
    if (
        not isinstance(found, list)
        or len(found) != len(of)
        or len(set(of)) < len(of)
        or not all(isinstance(value, bytes) for value in found)
    ):
        raise SecureAggregationError(f"expected one entry of `{values}` for each of `{keys}`, each once")
    return of, found
