"""Sorting many short columns at once: a network of minima and maxima over whole rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NETWORK_UP_TO = 64
"""Rows from which numpy's own sort takes no longer."""


class Comparator(NamedTuple):
    """Puts the smaller of two rows' values first; one side is left alone if nobody reads it."""

    first: int
    second: int
    needs_first: bool
    needs_second: bool


@lru_cache(maxsize=32)
def network(size: int, start: int, stop: int) -> tuple[Comparator, ...]:
    """Give the comparators that bring the values of these ranks to their places.

    Batcher's odd-even merge sort (K. E. Batcher, "Sorting networks and their applications", 1968; Knuth,
    TAOCP vol. 3, 5.2.2, algorithm M), without what the wanted ranks do not depend on.

    Args:
        size: Number of rows.
        start: First rank wanted, from 0.
        stop: One past the last.

    Example:
        >>> len(network(10, 0, 10)), len(network(10, 4, 6))
        (32, 29)
    """
    wanted = set(range(start, stop))
    kept = []
    for first, second in reversed(list(_merge_sort(size))):
        if first in wanted or second in wanted:
            kept.append(Comparator(first, second, first in wanted, second in wanted))
            wanted |= {first, second}
    return tuple(kept[::-1])


def sorted_rows(rows: Sequence[Array], start: int, stop: int) -> list[Array]:
    """Sort the values at each place, and give the rows of some ranks.

    Args:
        rows: Arrays of one shape and dtype, float32 or float64, finite, without a negative zero; their
            contents are lost.
        start: First rank wanted, from 0.
        stop: One past the last.

    Returns:
        Rows of the ranks from ``start`` to ``stop``.

    Example:
        >>> rows = [np.array([3.0, 1.0]), np.array([1.0, 2.0]), np.array([2.0, 9.0])]
        >>> sorted_rows(rows, 1, 2)
        [array([2., 2.])]
    """
    if len(rows) > NETWORK_UP_TO:
        return list(np.sort(np.stack(rows), axis=0)[start:stop])
    at, spare = list(rows), np.empty_like(rows[0])
    for first, second, needs_first, needs_second in network(len(rows), start, stop):
        low, high = at[first], at[second]
        if not needs_second:
            np.minimum(low, high, out=low)
        elif not needs_first:
            np.maximum(low, high, out=high)
        else:
            np.minimum(low, high, out=spare)
            np.maximum(low, high, out=high)
            at[first], spare = spare, low
    return at[start:stop]


def _merge_sort(size: int) -> Iterator[tuple[int, int]]:
    length = 1
    while length < size:
        step = length
        while step:
            for start in range(step % length, size - step, 2 * step):
                for i in range(start, min(start + step, size - step)):
                    if i // (2 * length) == (i + step) // (2 * length):
                        yield i, i + step
            step //= 2
        length *= 2
