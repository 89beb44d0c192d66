"""Plain data for scripts, and plain text for terminals."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(data: Any) -> None:
    """Print data as JSON; null where JSON has no number.

    Example:
        >>> print_json({"loss": float("nan"), "rounds": [1, 2]})
        {"loss": null, "rounds": [1, 2]}
    """
    print(json.dumps(_finite(data), allow_nan=False))


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
