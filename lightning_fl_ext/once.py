"""Saying a thing once, though every round makes its objects anew."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable

_MOST = 10_000
_said: OrderedDict[Hashable, None] = OrderedDict()


def warn_once(log: logging.Logger, run: object, text: str, *, topic: str = "") -> None:
    """Log a warning, unless this process has said the same in the same run.

    Args:
        log: Where to.
        run: Tells the run.
        text: What to say.
        topic: What it is about, if the same warning may have several wordings.
    """
    key = (str(run), topic or text)
    if key not in _said:
        _said[key] = None
        if len(_said) > _MOST:
            _said.popitem(last=False)
        log.warning("%s", text)
