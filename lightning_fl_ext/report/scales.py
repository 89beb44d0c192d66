"""Numbers for people: round tick marks, and values in few digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

LARGEST = 1e300
"""Values beyond it, in either direction, are drawn as if they were it."""

_SMALLEST = 1e-300  # what is between 0 and this is drawn as if it were 0

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Choose evenly spaced round numbers that enclose a range.

    Args:
        low: Start of the range, finite.
        high: End of the range, finite.
        count: About how many steps.

    Returns:
        Two numbers or more, ascending; the first is at most ``low``, the last at least ``high``.

    Example:
        >>> nice_ticks(0.691, 0.944), nice_ticks(0, 9, 4)
        ([0.6, 0.7, 0.8, 0.9, 1.0], [0.0, 2.5, 5.0, 7.5, 10.0])
    """
    low, high = (max(-LARGEST, min(value, LARGEST)) for value in (low, high))
    span = high - low
    if span <= max(1e-9 * max(abs(low), abs(high)), _SMALLEST):  # one value, up to rounding
        span = abs(high) if abs(high) > _SMALLEST else 1.0
        low, high = low - span / 2, high + span / 2
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(k * step, digits) if digits < 300 else k * step for k in range(first, last + 1)]


def round_ticks(numbers: Sequence[int], count: int = 8) -> list[int]:
    """Choose which rounds to label: the first, the last, and round numbers between.

    Example:
        >>> round_ticks(range(1, 9)), round_ticks(range(1, 101), 5)
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 20, 40, 60, 80, 100])
    """
    first, last = numbers[0], numbers[-1]
    if last - first < count:
        return list(range(first, last + 1))
    step = max(1, math.ceil(nice_ticks(0, last - first, count)[1]))
    between = [n for n in range(step, last, step) if first + step / 2 < n < last - step / 2]
    return [first, *between, last]


def show_number(value: float | None) -> str:
    """Write a value in four digits; a dash if there is none.

    Example:
        >>> show_number(0.94444), show_number(None), show_number(float("nan")), show_number(12345.6)
        ('0.9444', '–', 'nan', '12,346')
    """
    if value is None:
        return "–"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show_tick(value: float) -> str:
    """Write a round number in little room.

    Example:
        >>> show_tick(0.25), show_tick(1200), show_tick(-300_000), show_tick(15e6), show_tick(1e-7)
        ('0.25', '1200', '-300k', '15M', '1e-07')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if max(unit, 1e4) <= abs(value) < 1e12:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def show_bytes(value: float | None) -> str:
    """Write a number of bytes with its unit; a dash if there is none.

    Example:
        >>> show_bytes(385_200), show_bytes(12), show_bytes(None)
        ('385 kB', '12 B', '–')
    """
    if value is None or not math.isfinite(value):
        return show_number(value)
    power = min(len(_UNITS) - 1, int(math.log10(max(abs(value), 1)) // 3))
    return f"{value / 1000**power:.3g} {_UNITS[power]}"
