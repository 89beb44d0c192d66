"""The weighted sums of a model's floating arrays: one int64 for each number, or two, on every core.

Every term is split into whole multiples of 2^-8 and of 2^-44 by a rule that looks at nothing but the term
(`lightning_fl_ext.aggregation.arithmetic.bins`), and the multiples are summed as integers. So the order of
terms leaves no trace. And since integers of 64 bits form a group, whatever was added can be taken out again
to the bit, be it made of NaN: a pass adds first, looks at the magnitudes it saw, and goes back if it must.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import ceil, isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import LIMIT, QUANTUM_HIGH, SHIFT, Int64
from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.kernels import UPDATES_PER_PASS, Terms, Weights, count_folded, kernels_for
from lightning_fl_ext.aggregation.structure import PARTS, Arrays, Entry

Array = NDArray[Any]

ONE_WORD = 2**19 - 1
"""What all arrays' bounds must stay under for sums in quanta of 2^-44 to fit one int64."""

THREADED_FROM = 2**20
"""Numbers to fold or divide from which starting threads pays."""

_FIRST_HALF = np.uint64(2**64 - 2**27)


class _Block(NamedTuple):
    name: str
    part: slice
    """Of the flattened array."""
    place: slice
    """Of the sums, in which the arrays follow each other."""


_FlatUpdates = Sequence[tuple[Arrays, int]]
_Journal = list[tuple[_Block, list[float]]]


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
        self._words: Int64 = np.empty(sum(sizes.values()), np.int64)
        self._begun = False
        self._high: Int64 | None = None
        self._bounds = dict.fromkeys(entries, 0)

    def fold(self, updates: Sequence[tuple[Arrays, int]]) -> None:
        """Add updates times their weights in one pass: all of them, or, after an error, none.

        Raises:
            InvalidUpdate: If a value is not finite.
            AggregationOverflow: If an array's bound would reach `LIMIT`.
        """
        if not updates:
            return
        flats = self._flattened(updates)
        journal: _Journal = []
        try:
            self._add(flats, journal)
            bounds = self._grown(journal, [weight for _, weight in flats])
            if self._high is None and max(bounds.values(), default=0) >= ONE_WORD:
                self._undo(flats, journal)
                self._widen()
                self._add(flats, journal)
        except BaseException:
            self._undo(flats, journal)
            raise
        self._bounds = bounds

    def merge(self, other: FloatSums) -> None:
        """Add sums of the same arrays over other updates, or raise `AggregationOverflow` and add nothing."""
        bounds = {name: bound + other._bounds[name] for name, bound in self._bounds.items()}
        for name, bound in bounds.items():
            if bound >= LIMIT:
                raise _overflow(f"array `{name}`", bound)
        if other._high is not None or max(bounds.values(), default=0) >= ONE_WORD:
            self._widen()
        if self._high is not None:
            self._high += other._total >> SHIFT if other._high is None else other._high
        np.add(self._total, other._total, out=self._words)
        self._bounds = bounds

    @property
    def _total(self) -> Int64:
        """The first word of all sums. The first pass sets each block to zero itself, which saves a pass."""
        if not self._begun:
            self._words[:] = 0
            self._begun = True
        return self._words

    @property
    def bounds(self) -> Mapping[str, int]:
        """Of each array, a bound on the sum of weight times largest magnitude."""
        return self._bounds

    def words(self) -> Int64:
        """Give the first word of all sums; that of all terms is their sum modulo 2^64."""
        return self._total

    def second_words(self) -> Int64:
        """Give the second word of all sums, which adds up by itself as well."""
        return self._total >> SHIFT if self._high is None else self._high

    def set_words(self, total: Int64, high: Int64 | None) -> None:
        """Take sums of what :meth:`words` gave; without the second word they must fit 64 bits.

        Raises:
            AggregationOverflow: They are beyond `LIMIT`.
        """
        limit = LIMIT / QUANTUM_HIGH
        if high is not None and high.size and not -limit <= high.min() <= high.max() <= limit:
            raise _overflow("the sum", float(np.abs(high.astype(np.float64)).max()) * QUANTUM_HIGH)
        self._words, self._high, self._begun = total, high, True

    def mean(self, count: int, out: Arrays) -> None:
        """Divide by ``count``, rounding once to the dtype of each array to write to, and write to ``out``."""
        means = self._flat_views(out)

        def divide(blocks: Iterable[_Block]) -> None:
            for name, part, place in blocks:
                self._kernels.mean(*self._sums(place), float(count), means[name][part])

        self._run_blocks(divide, self._total.size)

    def mean_of(self, updates: Sequence[tuple[Arrays, int]], count: int, out: Arrays) -> None:
        """Divide the sums of these updates alone by ``count``, with the bits and errors of `fold` and `mean`.

        Each block is summed and divided before the next, so its sums never leave the processor's cache; it
        gets a second word if its own numbers need one.
        """
        flats, weights = self._flattened(updates), [weight for _, weight in updates]
        means = self._flat_views(out)
        journal: _Journal = []

        def average(blocks: Iterable[_Block]) -> None:
            scratch: Int64 = np.empty((2, self._kernels.block), np.int64)
            for block in blocks:
                name, part, _ = block
                total, second = scratch[:, : part.stop - part.start]
                for high in (None, second):
                    scratch[:] = 0
                    peaks: list[float] = []
                    for terms, term_weights in _groups(flats, block):
                        peaks.extend(self._kernels.fold(total, high, terms, term_weights))
                    bound = sum(map(_bound, weights, _largest(peaks, len(weights)).tolist()))
                    if bound < ONE_WORD:
                        break
                journal.append((block, peaks))
                if bound < LIMIT:  # otherwise the sums mean nothing, and `_grown` says why
                    self._kernels.mean(total, high, float(count), means[name][part])

        self._run_blocks(average, self._words.size * len(flats))
        self._grown(journal, weights)

    def _flattened(self, updates: Iterable[tuple[Arrays, int]]) -> _FlatUpdates:
        return [
            ({name: _flat(arrays[name], entry.dtype) for name, entry in self._entries.items()}, weight)
            for arrays, weight in updates
        ]

    def _flat_views(self, out: Arrays) -> dict[str, Array]:
        return {name: out[name].reshape(-1).view(_part(out[name].dtype)) for name in self._entries}

    def _add(self, flats: _FlatUpdates, journal: _Journal) -> None:
        """Add updates, writing down for every block the magnitudes seen so far."""
        begun = self._begun

        def add(blocks: Iterable[_Block]) -> None:
            for block in blocks:
                peaks: list[float] = []
                if not begun:
                    self._words[block.place] = 0
                journal.append((block, peaks))
                for values, weights in _groups(flats, block):
                    peaks.extend(self._kernels.fold(*self._sums(block.place), values, weights))

        self._run_blocks(add, self._words.size * len(flats))
        self._begun = True

    def _undo(self, flats: _FlatUpdates, journal: _Journal) -> None:
        """Take out what the journal says was added, and empty it."""
        while journal:
            block, peaks = journal.pop()
            for values, weights in _groups(flats, block, done=len(peaks)):
                self._kernels.unfold(*self._sums(block.place), values, weights)

    def _sums(self, place: slice) -> tuple[Int64, Int64 | None]:
        return self._words[place], None if self._high is None else self._high[place]

    def _widen(self) -> None:
        """Give every sum its second word, if it has none."""
        if self._high is None:
            self._high = self._total >> SHIFT

    def _grown(self, journal: _Journal, weights: list[int]) -> dict[str, int]:
        """Return the bounds after a pass, or raise if a value was not finite or a bound reaches `LIMIT`."""
        largest = {name: np.zeros(len(weights)) for name in self._entries}
        for block, peaks in journal:
            largest[block.name] = np.maximum(largest[block.name], _largest(peaks, len(weights)))
        bounds = dict(self._bounds)
        for name, peaks_of_updates in largest.items():
            for i, (weight, peak) in enumerate(zip(weights, peaks_of_updates.tolist(), strict=True)):
                where = f"update {i}, array `{name}`"
                if not isfinite(peak):
                    raise InvalidUpdate(f"{where}: expected finite values, got NaN or inf. Leave it out")
                bounds[name] += _bound(weight, peak)
                if bounds[name] >= LIMIT:
                    raise _overflow(where, bounds[name])
        return bounds

    def _run_blocks(self, work: Callable[[Iterable[_Block]], None], numbers: int) -> None:
        """Run ``work`` over all blocks, on several threads if there are numbers enough."""
        count_folded(numbers)
        threads = min(self._threads, len(self._blocks)) if numbers >= THREADED_FROM else 1
        if threads <= 1:
            work(self._blocks)
            return
        left = deque(self._blocks)  # each thread takes the next: a slow one holds nobody up
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [_taken_from(left) for _ in range(threads)]))


def _taken_from(blocks: deque[_Block]) -> Iterator[_Block]:
    while True:
        try:
            yield blocks.popleft()
        except IndexError:
            return


def _largest(peaks: list[float], updates: int) -> Array:
    """Give each update's largest magnitude in a block: a float64 update has two terms there."""
    largest: Array = np.reshape(peaks, (updates, -1)).max(axis=1)
    return largest


def _bound(weight: int, peak: float) -> int:
    """Round a term's magnitude up; `LIMIT` stands for anything larger, and for NaN."""
    term = weight * peak
    return ceil(term) if term < LIMIT else int(LIMIT)


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
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and type(array) is np.ndarray):
        array = np.require(array, requirements=["C", "A", "E"])
    flat: Array = array.reshape(-1)
    if dtype in PARTS:
        flat = flat.view(PARTS[dtype])
    flat.flags.writeable = False
    return flat


def _groups(flats: _FlatUpdates, block: _Block, done: int | None = None) -> Iterator[tuple[Terms, Weights]]:
    """Gather the terms of a block, or as many as were done: four at a time, what remains one by one.

    Only fours and ones, because numba compiles anew for every number of terms.
    """
    terms = [
        (values, float(weight))
        for arrays, weight in flats
        for values in _exact_factors(arrays[block.name][block.part])
    ][:done]
    fours = len(terms) - len(terms) % UPDATES_PER_PASS
    for start, stop in pairwise([*range(0, fours, UPDATES_PER_PASS), *range(fours, len(terms) + 1)]):
        values, weights = zip(*terms[start:stop], strict=True)
        yield values, weights


def _exact_factors(values: Array) -> tuple[Array, ...]:
    """Return float32 or float64 that add up to the values and whose products with a weight are exact."""
    if values.itemsize < 4:
        values = values.astype(np.float32)
        values.flags.writeable = False  # like the others, because numba compiles anew for arrays that are not
    if values.itemsize == 4:
        return (values,)
    first = (values.view(np.uint64) & _FIRST_HALF).view(np.float64)
    with np.errstate(invalid="ignore"):
        return first, values - first


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _overflow(where: str, bound: float) -> AggregationOverflow:
    return AggregationOverflow(
        f"{where}: the sum of weight times largest magnitude would reach {bound:.3e}, expected under 2^43"
        f" = {LIMIT:.3e}, up to which no bit is lost. Look for a diverging client, or give smaller weights"
    )
