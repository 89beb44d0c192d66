"""Rules that rank the updates' values at each place by itself: the median and the trimmed mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import InvalidUpdate
from lightning_fl_ext.aggregation.robust.rows import BLOCK, Rows
from lightning_fl_ext.aggregation.robust.rule import RobustRule, number_of
from lightning_fl_ext.aggregation.robust.sorting_network import sorted_rows
from lightning_fl_ext.aggregation.rounding import midpoint, rounded
from lightning_fl_ext.aggregation.structure import Arrays
from lightning_fl_ext.errors import LightningFLError

Array = NDArray[Any]


@dataclass(frozen=True)
class CoordinateMedian(RobustRule):
    """The median of each number (Yin et al., ICML 2018, arXiv:1803.01498, definition 1).

    Exact: of an even number of updates the mean of the two in the middle, rounded once. Of a complex number,
    the medians of both parts. Holds while less than half of the updates are bad.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> CoordinateMedian()(like, [{"w": np.array([w])} for w in (1.0, 2.0, 900.0)])
        {'w': array([2.])}
    """

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """See :meth:`RobustRule.write`."""
        rows = Rows(like, updates)
        places, low, high = rows.places(out), (len(updates) - 1) // 2, len(updates) // 2
        for name, part, dtype, ranked in _ranked(rows, low, high + 1):
            # Of an odd number the one in the middle is the mean of itself and itself.
            places[name][part] = midpoint(ranked[0], ranked[-1], dtype)


@dataclass(frozen=True)
class TrimmedMean(RobustRule):
    """The mean of each number without the largest and the smallest (Yin et al. 2018, definition 2).

    At either end ``fraction`` of the clients **asked** is left out, rounded down: that many may be bad, and a
    client that drops out makes it no fewer. The rest is summed from the smallest to the largest.

    Args:
        fraction: Of the clients asked, above 0 and below one half.

    Raises:
        ValueError: It is not.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> TrimmedMean(0.25)(like, [{"w": np.array([w])} for w in (1.0, 2.0, 3.0, 900.0)])
        {'w': array([2.5])}
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < number_of("fraction", self.fraction) < 0.5:
            raise ValueError(f"`fraction` must be above 0 and below one half. Got {self.fraction!r}.")

    def least(self, asked: int) -> int:
        """One more than are left out at both ends together."""
        return 2 * self._trimmed(asked) + 1

    def _trimmed(self, asked: int) -> int:
        trimmed = math.floor(self.fraction * asked + 1e-9)
        if not trimmed:
            raise LightningFLError(
                f"{self!r} trims nobody of {asked} clients asked, so it is the mean of all. Ask at least"
                f" {math.ceil(1 / self.fraction - 1e-9)}, or give a larger `fraction`."
            )
        return trimmed

    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """See :meth:`RobustRule.write`."""
        rows, trimmed = Rows(like, updates), self._trimmed(asked)
        places, kept = rows.places(out), len(updates) - 2 * trimmed
        for name, part, dtype, ranked in _ranked(rows, trimmed, trimmed + kept):
            total = ranked[0].astype(np.float64)
            for row in ranked[1:]:
                total += row
            places[name][part] = rounded(total / kept, dtype)


def _ranked(rows: Rows, start: int, stop: int) -> Iterable[tuple[str, slice, np.dtype[Any], list[Array]]]:
    """Sort each block's numbers, and give the ranks from ``start`` to ``stop``."""
    room: dict[np.dtype[Any], list[Array]] = {}
    for name, part, dtype, given in rows.blocks():
        kind = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        wide = []
        for i, row in enumerate(given):
            here = room.setdefault(kind, [np.empty(BLOCK, kind) for _ in given])[i][: row.size]
            # Adding zero makes a zero of a negative one, which would stay where its order put it.
            np.add(row if row.dtype == kind else row.astype(kind), kind.type(0), out=here)
            wide.append(here)
        ranked = sorted_rows(wide, start, stop)
        if not all(np.isfinite(row).all() for row in (ranked[0], ranked[-1])):
            raise InvalidUpdate(
                f"array `{name}`: expected finite values, got NaN or inf. Leave such updates out"
            )
        yield name, part, dtype, ranked
