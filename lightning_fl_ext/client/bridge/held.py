"""What a client holds of the global arrays between messages, in Flower's Context."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import PayloadError, from_record, to_record

HELD = "held"
"""The outcome of a fit or evaluation, and the record in a context, that hold what is kept."""


def read_held(context: Context) -> Arrays:
    """Give what was kept last; nothing if there is none or it is damaged: the server then sends the whole."""
    record = context.state.get(HELD)
    try:
        return from_record(record) if isinstance(record, ArrayRecord) else {}
    except PayloadError:
        return {}


def write_held(context: Context, arrays: Arrays) -> None:
    """Keep arrays in the place of those before; none, if an exchange keeps none.

    Example:
        >>> import numpy as np
        >>> from flwr.app import RecordDict
        >>> context = Context(1, 1, {}, RecordDict(), {})
        >>> write_held(context, {"counts": np.arange(3)})
        >>> read_held(context)
        {'counts': array([0, 1, 2])}
        >>> write_held(context, {})
        >>> len(context.state)
        0
    """
    if arrays:
        context.state[HELD] = to_record(arrays)
    elif HELD in context.state:
        del context.state[HELD]
