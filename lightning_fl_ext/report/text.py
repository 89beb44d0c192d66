"""Text from outside, made fit to be shown."""

from __future__ import annotations

from typing import Any


def shown(text: Any, limit: int = 200) -> str:
    r"""Write out what cannot be printed, and cut what is endless.

    A client chooses its name, its metrics' names and its error's words: they must not move a terminal's
    cursor or fill a page.

    Example:
        >>> print(shown("café\x1b[31m"), shown("a" * 9, 5))
        café\x1b[31m aaaa…
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
