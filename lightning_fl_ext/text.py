"""Text from outside, made fit to be shown."""

from __future__ import annotations

import traceback
import unicodedata
from collections.abc import Iterable
from typing import Any

_BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols, to Unicode, that show as nothing."""

_STACK = 4
"""Marks on one letter that a script may need; more of them paint over the lines around."""


def shown(text: Any, limit: int = 200) -> str:
    r"""Write out what cannot be printed, and cut what is endless.

    A client chooses its name, its metrics' names and its error's words: they must not move a terminal's
    cursor, change the direction of the text around them, begin a line of their own, or fill a page. Control
    and format characters, line breaks, lone surrogates and letters that show as nothing are written as
    escapes. What is markup to HTML or rich is left as it is: whoever writes for these escapes for them.

    Args:
        text: Whatever came. At most ``limit`` characters of it are looked at.
        limit: Most characters of the result.

    Example:
        >>> print(shown("café\x1b[31m"), shown("a" * 9, 5), shown("abc\u202ecba"))
        café\x1b[31m aaaa… abc\u202ecba
    """
    text, marks, line = str(text), 0, []
    for c in text[: limit + 1]:
        marks = marks + 1 if unicodedata.category(c)[0] == "M" else 0
        fit = c.isprintable() and c not in _BLANK and marks <= _STACK
        line.append(c if fit else c.encode("unicode_escape").decode())
    written = "".join(line)
    return written if len(written) <= limit else f"{written[: limit - 1]}…"


def listed(names: Iterable[Any], named: int = 5) -> str:
    """Name the first few of several, and say how many more there are.

    Example:
        >>> listed(["a", "b", "c"], named=2)
        '`a`, `b` and 1 more'
    """
    every = list(names)
    more = f" and {len(every) - named} more" if len(every) > named else ""
    return ", ".join(f"`{shown(name)}`" for name in every[:named]) + more


def shown_traceback(error: BaseException, lines: int = 40) -> str:
    """Write out where an exception was raised, as lines that are text and nothing else.

    Args:
        error: Its message may hold whatever came.
        lines: How many to give at most, the last ones.
    """
    text = "".join(traceback.format_exception(error, limit=-lines // 2))
    return "\n".join(shown(line) for line in text.splitlines()[-lines:])
