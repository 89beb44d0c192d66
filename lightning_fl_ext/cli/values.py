"""Values given as ``KEY=VALUE``."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

from lightning_fl_ext.cli.errors import WrongInput

_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_pairs(pairs: Iterable[str], flag: str) -> dict[str, Any]:
    """Read ``KEY=VALUE`` arguments; a value is a Python literal, or else text.

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
        if not (equals and key.isidentifier()):
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
