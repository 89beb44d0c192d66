"""What a client takes from a server: of which type, from where to where, and how much of it.

A client reads these few things of a message and nothing else. Each is checked before it is used, in time
and memory in proportion to the message.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics.summing import LONGEST_ENTRY
from lightning_fl_ext.text import shown

MOST_ROUND = 2**31 - 1
"""Largest number of a round."""

MOST_SEED = 2**63 - 1
"""Largest seed of a run; larger ones cannot travel."""

MOST_NUMBER = sys.float_info.max
"""Largest number that is no count."""

MOST_ARRAYS = 2**16
"""Most arrays in a message. Models of hundreds of layers have thousands."""

MOST_SAMPLED = 2**17
"""Most ids of clients in a list of those asked; the exact mean takes as many."""

LONGEST_NAME = 1024
"""Most characters in the name of an array or client, and in the id of a run."""

MOST_AXES = 64
"""Most axes of an array, as numpy has it."""


class InstructionError(LightningFLError):
    """A message of the server holds what no server of this package sends; nothing was done with it."""


def bounded_integer(key: str, value: Any, most: int) -> int:
    """Take a whole number from 0 to ``most``.

    Example:
        >>> bounded_integer("server-round", -1, 10)
        Traceback (most recent call last):
        ...
        lightning_fl_ext.client.instruction_limits.InstructionError: the server's config `server-round`:
        expected a whole number from 0 to 10, got -1
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise _refused(f"config `{key}`", f"a whole number from 0 to {most}", value)
    return value


def number(key: str, value: Any) -> float:
    """Take a finite number of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST_NUMBER:
        raise _refused(f"config `{key}`", "a finite number of at least 0", value)
    return float(value)


def flag(key: str, value: Any) -> bool:
    """Take a yes or no: a boolean, or 0 or 1."""
    if not isinstance(value, int) or value not in (0, 1):
        raise _refused(f"config `{key}`", "True or False", value)
    return bool(value)


def name(key: str, value: Any) -> str:
    """Take a name, of some length, that can be written down; whole numbers are names too."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not 0 < len(text) <= LONGEST_NAME or not _is_utf8(text):
        raise _refused(f"config `{key}`", f"a text of 1 to {LONGEST_NAME} characters", value)
    return text


def choice(key: str, value: Any, known: tuple[str, ...]) -> str:
    """Take one of several texts."""
    if not isinstance(value, str) or value not in known:
        raise _refused(f"config `{key}`", f"one of {', '.join(known)}", value)
    return value


def names(key: str, value: Any) -> tuple[str, ...]:
    """Take a list of different names."""
    what = f"config `{key}`"
    if not isinstance(value, list):
        raise _refused(what, "a list of clients' ids", value)
    if len(value) > MOST_SAMPLED:
        raise _refused(what, f"at most {MOST_SAMPLED} ids", f"{len(value)} of them", plain=True)
    for item in value:
        if not isinstance(item, str) or len(item) > LONGEST_NAME or not _is_utf8(item):
            raise _refused(what, f"ids of at most {LONGEST_NAME} characters", item)
    if len(set(value)) < len(value):
        raise _refused(what, "each id once", f"{len(value) - len(set(value))} twice", plain=True)
    return tuple(value)


def check_arrays(record: ArrayRecord) -> None:
    """Refuse more arrays, longer names and more axes than a model has.

    Raises:
        InstructionError: Names the array.
    """
    if len(record) > MOST_ARRAYS:
        raise _refused("weights", f"at most {MOST_ARRAYS} arrays", f"{len(record)} of them", plain=True)
    for key, array in record.items():
        if len(key) > LONGEST_NAME:
            raise _refused("weights", f"names of at most {LONGEST_NAME} characters", key)
        if len(array.shape) > MOST_AXES or any(size < 0 for size in array.shape):
            expected = f"at most {MOST_AXES} axes, of 0 or more entries each"
            raise _refused(f"array `{shown(key)}`", expected, array.shape)


_NUMBERS = ("asked", "threshold")
_LISTS_OF_NUMBERS = ("from", "survivors", "dropped", "signers")


def check_step(asked: Mapping[str, Any]) -> None:
    """Refuse what no step of secure aggregation asks: of other types, longer, or of more clients.

    What a step needs and how it fits together is checked when it is taken.

    Raises:
        InstructionError: Names the key.
    """
    for key, value in asked.items():
        what = f"secure step, `{shown(key)}`"
        kind: type = int if key in _LISTS_OF_NUMBERS else bytes
        if key in _NUMBERS:
            bounded_integer(key, value, MOST_SAMPLED)
        elif key == "max-update-norm":
            number(key, value)
        elif isinstance(value, list):
            if len(value) > MOST_SAMPLED:
                raise _refused(what, f"at most {MOST_SAMPLED} entries", f"{len(value)} of them", plain=True)
            longest = LONGEST_ENTRY if key == "metrics" else LONGEST_NAME
            for item in value:
                _check_part(what, item, kind, longest)
        elif not isinstance(value, bool):
            _check_part(what, value, bytes)


def _check_part(what: str, value: Any, kind: type, longest: int = LONGEST_NAME) -> None:
    if isinstance(value, str):
        if len(value) > longest or not _is_utf8(value):
            raise _refused(what, f"a text of at most {longest} characters", value)
    elif not isinstance(value, kind) or isinstance(value, bool):
        raise _refused(what, "numbers" if kind is int else "texts or bytes", value)


def _refused(what: str, expected: str, got: Any, plain: bool = False) -> InstructionError:
    said = got if plain else shown(_SHORT.repr(got))
    return InstructionError(f"the server's {what}: expected {expected}, got {said}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = 4
