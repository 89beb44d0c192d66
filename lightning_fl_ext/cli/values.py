"""Values as text: read from ``KEY=VALUE``, and printed as JSON for scripts."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable
from typing import Any

from lightning_fl_ext.cli.errors import WrongInput

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_pairs(pairs: Iterable[str], flag: str, dashes: bool = False) -> dict[str, Any]:
    """Read ``KEY=VALUE`` arguments; a value is a Python literal, or else text.

    Args:
        pairs: The arguments.
        flag: Which they were given to, for the message.
        dashes: Whether keys may have dashes, as those of a round's settings have.

    Raises:
        WrongInput: One has no key or no ``=``.

    Example:
        >>> parse_pairs(["max_epochs=2", "precision=bf16-mixed", "deterministic=true"], "`--trainer-option`")
        {'max_epochs': 2, 'precision': 'bf16-mixed', 'deterministic': True}
    """
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not (equals and (key.replace("-", "_") if dashes else key).isidentifier()):
            raise WrongInput(f"{flag}: expected KEY=VALUE. Got `{pair}`.")
        parsed[key] = _literal(value.strip())
    return parsed


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


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
