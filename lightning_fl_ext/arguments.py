"""Numbers, words and folders that are given as arguments, checked; and what to say of what is wrong."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np


def whole_number(name: str, value: Any, least: int) -> int:
    """Take a whole number.

    Args:
        name: The argument's name.
        value: What was given for it.
        least: The smallest that will do.

    Raises:
        TypeError: It is not a whole number.
        ValueError: It is smaller.

    Example:
        >>> whole_number("max_rounds", 2.5, 0)
        Traceback (most recent call last):
        ...
        TypeError: `max_rounds` must be a whole number. Got 2.5.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be a whole number. Got {value!r}.") from None
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}. Got {value!r}.")
    return number


def metric_name(value: Any) -> str:
    """Take the name of a metric to monitor.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"`monitor` must be the name of a metric.{got(value)}")
    return value


def limit(name: str, value: Any, *, zero: bool = False) -> float | None:
    """Take a number that limits something, or None for no limit.

    Args:
        name: The argument's name.
        value: What was given for it.
        zero: Whether it may be zero.

    Raises:
        TypeError: It is not a number.
        ValueError: It is NaN, negative, or zero where that will not do.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number, or None for no limit. Got {value!r}.")
    number = float(value)
    if not (number > 0 or (zero and number == 0)):
        raise ValueError(f"`{name}` must be {'>=' if zero else '>'} 0, or None for no limit. Got {value!r}.")
    return number


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Take one of a few words.

    Raises:
        ValueError: It is another.
    """
    if value not in choices:
        raise ValueError(f"`{name}` must be {' or '.join(map(repr, choices))}. Got {value!r}.")
    return str(value)


def folder(name: str, value: Any) -> Path:
    """Take a folder's path.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str | Path):
        raise TypeError(f"`{name}` must be the path of a folder." + got(value))
    return Path(value)


def got(value: Any) -> str:
    """Say what was given instead, and how an object is made of a class.

    Example:
        >>> got(dict), got(True)
        (' Got the class dict: write `dict(...)`.', ' Got True.')
    """
    call = f": write `{value.__name__}(...)`" if isinstance(value, type) else ""
    return f" Got {kind_of(value)}{call}."


def kind_of(value: Any) -> str:
    """Say what a value is, in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"an instance of {type(value).__name__}"
