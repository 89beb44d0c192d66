"""The weighted sums of a model's floating arrays: two int64 for each number, on every core.

Every term is split into whole multiples of 2^-8 and of 2^-44 by a rule that looks at nothing but the term
(`lightning_fl_ext.aggregation.arithmetic.bins`), and the multiples are summed as integers. So the order of
terms leaves no trace, and a term added with the opposite weight is taken out again to the bit: that is how
a pass ends that meets a bad value.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil, isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import LIMIT
from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.kernels import kernels_for
from lightning_fl_ext.aggregation.structure import PARTS, Arrays, Entry

Array = NDArray[Any]

THREADED_FROM = 2**20
"""Numbers to fold or divide from which starting threads pays."""

_FIRST_HALF = np.uint64(2**64 - 2**27)


class _Block(NamedTuple):
    name: str
    part: slice
    """Of the flattened array."""
    place: slice
    """Of the sums, in which the arrays follow each other."""


class _Folded(NamedTuple):
    """What the journal of a pass keeps: which block of which update, and weight times magnitude in it."""

    block: _Block
    update: int
    need: int


class FloatSums:
    """Sums over updates of some named floating or complex arrays.

    Args:
        entries: Shapes and dtypes of the arrays.
        threads: How many threads may work at most; None for one on each core this process may use.
    """

    def __init__(self, entries: Mapping[str, Entry], threads: int | None) -> None:
        self._entries = entries
        self._threads = threads or _available_cores()
        sizes = {name: _size(entry) for name, entry in entries.items()}
        self._kernels = kernels_for(sum(sizes.values()))
        self._blocks = list(_cut(sizes, self._kernels.block))
        self._high, self._low = np.zeros((2, sum(sizes.values())), np.int64)
        self._bounds = dict.fromkeys(entries, 0)

    def fold(self, updates: Sequence[tuple[Arrays, int]]) -> None:
        """Add updates times their weights in one pass: all of them, or, after an error, none.

        A block of an update is checked and folded while it is in the processor's cache, so the updates'
        memory is read once. Should a later block be refused, the journal tells what to take out again.

        Raises:
            InvalidUpdate: If a value is not finite.
            AggregationOverflow: If an array's bound would reach `LIMIT`.
        """
        flats = [
            ({name: _flat(arrays[name], entry.dtype) for name, entry in self._entries.items()}, weight)
            for arrays, weight in updates
        ]
        journal: list[_Folded] = []

        def fold(blocks: Sequence[_Block]) -> None:
            for block in blocks:
                for i, (arrays, weight) in enumerate(flats):
                    peak = self._add(block, arrays, weight)
                    if not weight * peak < LIMIT:
                        raise _refusal(f"update {i}, array `{block.name}`", weight, peak)
                    journal.append(_Folded(block, i, ceil(weight * peak)))

        try:
            self._share_out(fold, self._high.size * len(flats))
            self._bounds = self._grown(journal)
        except BaseException:
            for block, i, _ in journal:
                arrays, weight = flats[i]
                self._add(block, arrays, -weight)
            raise

    def merge(self, other: FloatSums) -> None:
        """Add sums of the same arrays over other updates, or raise `AggregationOverflow` and add nothing."""
        bounds = {name: bound + other._bounds[name] for name, bound in self._bounds.items()}
        for name, bound in bounds.items():
            if bound >= LIMIT:
                raise _overflow(f"array `{name}`", bound)
        self._bounds = bounds
        self._high += other._high
        self._low += other._low

    def mean(self, count: int) -> dict[str, Array]:
        """Divide by ``count``, rounding once to each array's dtype."""
        flats = {name: np.empty(_size(entry), _part(entry.dtype)) for name, entry in self._entries.items()}

        def divide(blocks: Sequence[_Block]) -> None:
            for name, part, place in blocks:
                self._kernels.mean(self._high[place], self._low[place], float(count), flats[name][part])

        self._share_out(divide, self._high.size)
        return {
            name: flats[name].view(entry.dtype).reshape(entry.shape) for name, entry in self._entries.items()
        }

    def _add(self, block: _Block, arrays: Arrays, weight: int) -> float:
        """Add a block times a weight of either sign if that stays under `LIMIT`; return its magnitude."""
        high, low, values = self._high[block.place], self._low[block.place], arrays[block.name][block.part]
        if values.itemsize < 4:
            values = values.astype(np.float32)  # exact
            values.flags.writeable = False  # like the others: numba compiles for one kind of array
        if values.itemsize == 4:
            return self._kernels.fold(high, low, values, float(weight))
        # 53 bits times a weight would be rounded; the first 26 bits and the other 27 are not.
        first = (values.view(np.uint64) & _FIRST_HALF).view(np.float64)
        peak = self._kernels.fold(high, low, first, float(weight))
        if abs(weight) * peak < LIMIT:
            self._kernels.fold(high, low, values - first, float(weight))
        return peak

    def _grown(self, journal: Iterable[_Folded]) -> dict[str, int]:
        """Return the bounds after a pass: each grows by every update's largest need in the array's blocks."""
        needs: dict[tuple[str, int], int] = {}
        for block, i, need in journal:
            needs[block.name, i] = max(need, needs.get((block.name, i), 0))
        bounds = dict(self._bounds)
        for (name, i), need in needs.items():
            bounds[name] += need
            if bounds[name] >= LIMIT:
                raise _overflow(f"update {i}, array `{name}`", bounds[name])
        return bounds

    def _share_out(self, work: Callable[[Sequence[_Block]], None], numbers: int) -> None:
        """Run ``work`` over all blocks, on several threads if there are numbers enough."""
        threads = min(self._threads, len(self._blocks)) if numbers >= THREADED_FROM else 1
        if threads <= 1:
            work(self._blocks)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [self._blocks[i::threads] for i in range(threads)]))


def _part(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the real numbers in an array."""
    return PARTS.get(dtype, dtype)


def _size(entry: Entry) -> int:
    """Count the real numbers in an array."""
    return prod(entry.shape) * (entry.dtype.itemsize // _part(entry.dtype).itemsize)


def _cut(sizes: Mapping[str, int], step: int) -> Iterable[_Block]:
    offset = 0
    for name, size in sizes.items():
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield _Block(name, slice(start, stop), slice(offset + start, offset + stop))
        offset += size


def _flat(array: Array, dtype: np.dtype[Any]) -> Array:
    """View an array as contiguous, aligned real numbers, read-only; copy it only if it is not so."""
    flat: Array = np.require(array, requirements=["C", "A", "E"]).reshape(-1).view(_part(dtype))
    flat.flags.writeable = False
    return flat


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refusal(where: str, weight: int, peak: float) -> InvalidUpdate | AggregationOverflow:
    if isfinite(peak):
        return _overflow(where, weight * peak)
    return InvalidUpdate(f"{where}: expected finite values, got NaN or inf. Leave this update out")


def _overflow(where: str, bound: float) -> AggregationOverflow:
    return AggregationOverflow(
        f"{where}: the sum of weight times largest magnitude would reach {bound:.3e}, expected under 2^43"
        f" = {LIMIT:.3e}, up to which no bit is lost. Look for a diverging client, or give smaller weights"
    )
