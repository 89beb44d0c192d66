"""Names and counts: what a client may call something, and count."""

from __future__ import annotations

from typing import Any

from lightning_fl_ext.aggregation.structure import MAX_WEIGHT
from lightning_fl_ext.server.screening.rejection import Reason, Rejected


def screen_name(name: Any, longest: int) -> None:
    """Refuse what cannot stand as a name in logs, files and ledgers.

    Args:
        name: A name.
        longest: Number of characters it may have.

    Raises:
        Rejected: It is too long, or holds what is not printable: control characters, marks that turn text
            round, halves of characters that no UTF-8 can hold.

    Example:
        >>> screen_name("val/läuft", 256)
    """
    if type(name) is not str:
        raise Rejected(Reason.NAME, "", "a text as a name", type(name).__name__)
    if len(name) > longest:
        what = f"a name of at most {longest} characters (`Limits.name`)"
        raise Rejected(Reason.NAME, name[:40], what, f"{len(name)}")
    if not name.isprintable():
        raise Rejected(Reason.NAME, name, "a name of printable characters", ascii(name))


def screen_count(key: str, count: Any, most: int = MAX_WEIGHT) -> int:
    """Take a count of examples.

    Args:
        key: What counts.
        count: What came for it.
        most: The largest that will do.

    Raises:
        Rejected: It is not a whole number from 0 on, or larger.
    """
    number = isinstance(count, int | float) and not isinstance(count, bool)
    if number and 0 <= count <= most and count == int(count):
        return int(count)
    raise Rejected(
        Reason.COUNT, key, f"a whole number up to {most}", "nothing" if count is None else shown_number(count)
    )


def shown_number(value: Any) -> str:
    """Write down what came in place of a number, however long.

    Example:
        >>> shown_number(10**5000), shown_number(2.5)
        ('a number of 16610 bits', '2.5')
    """
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 1024:
        return f"a number of {value.bit_length()} bits"
    return repr(value[:10] if isinstance(value, list | str | bytes) else value)
