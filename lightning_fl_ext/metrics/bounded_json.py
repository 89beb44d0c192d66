"""JSON from somebody else: how much of it there is, and how deep, is known before it is parsed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True)
class JsonLimits:
    """What a JSON text may hold.

    Attributes:
        size: Bytes.
        entries: Values and containers.
        depth: Containers within each other.
    """

    size: int = 2**20
    entries: int = 100_000
    depth: int = 16


def load_json(text: bytes, limits: JsonLimits) -> Any:
    """Parse a JSON text, having looked at how much it holds.

    A parsed value takes up to forty times the bytes of its text: looking first takes one pass and no more
    memory than the text.

    Args:
        text: UTF-8.
        limits: What it may hold.

    Raises:
        ValueError: It holds more, or is no JSON.

    Example:
        >>> load_json(b'{"a": [1, "]["]}', JsonLimits())
        {'a': [1, '][']}
        >>> load_json(b"[" * 50, JsonLimits())
        Traceback (most recent call last):
        ...
        ValueError: expected JSON at most 16 deep, got 50
    """
    if len(text) > limits.size:
        raise ValueError(f"expected at most {limits.size} bytes of JSON, got {len(text)}")
    bare = _STRING.sub(b"", text)
    opening = bare.count(b"[") + bare.count(b"{")
    if (entries := opening + bare.count(b",") + 1) > limits.entries:
        raise ValueError(f"expected at most {limits.entries} entries in JSON, got {entries}")
    letters = np.frombuffer(bare, dtype=np.uint8)
    steps = np.zeros(letters.size, dtype=np.int8)
    for opens, closes in (b"[]", b"{}"):
        steps[letters == opens] = 1
        steps[letters == closes] = -1
    depth = int(np.cumsum(steps, dtype=np.int32).max(initial=0))
    if depth > limits.depth:
        raise ValueError(f"expected JSON at most {limits.depth} deep, got {depth}")
    return json.loads(text)
