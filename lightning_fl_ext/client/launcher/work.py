"""What the processes of a ClientApp run: its own function, beneath Flower's mods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from flwr.app import Context, Message

from lightning_fl_ext.errors import LightningFLError

Work = Callable[[Message, Context], Message | None]
"""Answers a message; None on the ranks that have no answer."""

_works: WeakKeyDictionary[Any, Work] = WeakKeyDictionary()


def set_work(app: Any, work: Work) -> None:
    """Note what a ClientApp's processes run."""
    _works[app] = work


def work_of(app: Any) -> Work:
    """Tell what a ClientApp's processes run.

    Raises:
        LightningFLError: It is not made by ``client_app``.
    """
    try:
        return _works[app]
    except (KeyError, TypeError):
        raise LightningFLError(
            f"a launcher needs a ClientApp that `client_app` made. Got an instance of {type(app).__name__}."
        ) from None
