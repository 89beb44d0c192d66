"""The magnitudes that a pass over the blocks sees, and the bounds on sums that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import LIMIT
from lightning_fl_ext.aggregation.blocks import Block, terms_per_update
from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.structure import Entry
from lightning_fl_ext.errors import LightningFLError

Array = NDArray[Any]


class Peaks:
    """Each update's largest magnitude in each block, and how many terms of a block have been seen.

    A float64 update has two terms in a block, others have one.

    Args:
        blocks: Of the arrays, in their order.
        entries: Shapes and dtypes of the arrays.
        updates: How many updates the pass takes.

    Example:
        >>> entries = {"w": Entry((3,), np.dtype(np.float32))}
        >>> blocks = [Block(0, "w", slice(0, 2), slice(0, 2)), Block(1, "w", slice(2, 3), slice(2, 3))]
        >>> peaks = Peaks(blocks, entries, updates=2)
        >>> peaks.note(0, np.array([1.0, 5.0]))
        >>> peaks.note(1, np.array([3.0]))
        >>> peaks.seen, peaks.by_array()
        ([2, 1], {'w': array([3., 5.])})
    """

    def __init__(self, blocks: Sequence[Block], entries: Mapping[str, Entry], updates: int) -> None:
        terms = {name: terms_per_update(entry.dtype) for name, entry in entries.items()}
        self._width = max(terms.values(), default=1)
        self._steps = {name: self._width // number for name, number in terms.items()}
        self._blocks = blocks
        self._updates = updates
        self._rows = np.zeros((len(blocks), updates * self._width))
        self.seen = [0] * len(blocks)
        """Terms of each block."""

    def note(self, number: int, found: Array) -> None:
        """Note the largest magnitudes of the next terms of a block, not finite if a value was not."""
        start, step = self.seen[number], self._steps[self._blocks[number].name]
        self.seen[number] = stop = start + len(found)
        self._rows[number, start * step : stop * step : step] = found

    def of_block(self, number: int) -> Array:
        """Give each update's largest magnitude in a block."""
        peaks: Array = self._rows[number].reshape(self._updates, self._width).max(axis=1)
        return peaks

    def by_array(self) -> dict[str, Array]:
        """Give each update's largest magnitude in each array that has numbers; NaN wins."""
        if not self._blocks:
            return {}
        starts = [block.number for block in self._blocks if block.part.start == 0]
        peaks = np.maximum.reduceat(self._rows, starts, axis=0)
        peaks = peaks.reshape(len(starts), self._updates, self._width).max(axis=2)
        return {self._blocks[start].name: row for start, row in zip(starts, peaks, strict=True)}


def terms_bound(weights: Array, peaks: Array) -> list[int]:
    """Add up terms' magnitudes, each rounded up, along the last axis; `LIMIT` stands for more, and for NaN.

    Example:
        >>> terms_bound(np.array([1.0, 2.0]), np.array([[0.5, 0.75], [0.0, np.nan]])) == [3, int(LIMIT)]
        True
    """
    with np.errstate(over="ignore", invalid="ignore"):
        totals = np.ceil(weights * peaks).sum(axis=-1)
    return [int(total) if total < LIMIT else int(LIMIT) for total in totals.tolist()]


def grown(bounds: Mapping[str, int], peaks: Peaks, weights: Array) -> dict[str, int]:
    """Give what a pass makes of the bounds on the arrays' sums.

    Args:
        bounds: Of each array, before.
        peaks: What a pass over all blocks saw.
        weights: Of its updates, float64.

    Raises:
        InvalidUpdate: A value was not finite.
        AggregationOverflow: A bound reaches `LIMIT`.
    """
    after, largest = dict(bounds), peaks.by_array()
    if largest:
        added = terms_bound(weights, np.array(list(largest.values())))
        for name, bound in zip(largest, added, strict=True):
            after[name] += bound
            if after[name] >= LIMIT:
                raise _fault(name, bounds[name], largest[name], weights)
    return after


def overflow(where: str, bound: float) -> AggregationOverflow:
    """Make the error of a bound that reaches `LIMIT`."""
    return AggregationOverflow(
        f"{where}: the sum of weight times largest magnitude would reach {bound:.3e}, expected under 2^43"
        f" = {LIMIT:.3e}, up to which no bit is lost. Look for a diverging client, or give smaller weights"
    )


def _fault(name: str, bound: int, peaks: Array, weights: Array) -> LightningFLError:
    """Tell which update of an array is not finite, or the first to take its bound to `LIMIT`."""
    where = ""
    for i, peak in enumerate(peaks.tolist()):
        where = f"update {i}, array `{name}`"
        if not isfinite(peak):
            return InvalidUpdate(f"{where}: expected finite values, got NaN or inf. Leave it out")
        bound += terms_bound(weights[i : i + 1], peaks[None, i : i + 1])[0]
        if bound >= LIMIT:
            break
    return overflow(where, bound)
