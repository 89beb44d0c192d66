"""The settings of a run, each told once."""

from __future__ import annotations

from typing import Any

from lightning_fl_ext.report.history import History

_NAMES = {"fraction": "strategy.fraction_train", "fraction-evaluate": "strategy.fraction_evaluate"}


def told_once(history: History) -> list[tuple[str, Any]]:
    """Give what the command line was told, without what the ledger vouches for with the same value.

    Example:
        >>> from pathlib import Path
        >>> told = {"seed": 7, "rounds": 3, "strategy-option eta": 0.1}
        >>> told_once(History(Path("run"), {"seed": 7, "strategy.eta": 0.1}, told))
        [('rounds', 3)]
    """
    missing = object()
    return [
        (key, value)
        for key, value in history.told.items()
        if history.fingerprint.get(_in_the_ledger(key), missing) != value
    ]


def _in_the_ledger(key: str) -> str:
    option = key.partition("strategy-option ")[2]
    return f"strategy.{option}" if option else _NAMES.get(key, key.replace("-", "_"))
