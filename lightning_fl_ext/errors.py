"""The base of every error this package raises on purpose."""

from __future__ import annotations


class LightningFLError(Exception):
    """Base class: catch it to catch everything this package refuses.

    The message says what is wrong, where (client, round, key), what was expected, what came, and
    what to do about it.

    Example:
        >>> raise LightningFLError("key `w`: expected shape (2,), got (3,)")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.errors.LightningFLError: key `w`: expected shape (2,), got (3,)
    """
