"""The weighted sums of a model's floating arrays: one int64 for each number, or two, on every core.

Every term is split into whole multiples of 2^-8 and of 2^-44 by a rule that looks at nothing but the term
(`lightning_fl_ext.aggregation.arithmetic.bins`), and the multiples are summed as integers. So the order of
terms leaves no trace. And since integers of 64 bits form a group, whatever was added can be taken out again
to the bit, be it made of NaN: a pass adds first, looks at the magnitudes it saw, and goes back if it must.
Only after an interrupt (Ctrl-C) nobody knows what was added, and the sums are refused from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import LIMIT, QUANTUM_HIGH, SHIFT, Int64
from lightning_fl_ext.aggregation.blocks import (
    Block,
    FlatUpdates,
    available_cores,
    cut,
    flat,
    groups,
    part_of,
    run,
    size_of,
)
from lightning_fl_ext.aggregation.kernels import count_folded, kernels_for
from lightning_fl_ext.aggregation.peaks import Peaks, grown, overflow, terms_bound
from lightning_fl_ext.aggregation.structure import Arrays, Entry
from lightning_fl_ext.errors import LightningFLError

Array = NDArray[Any]

ONE_WORD = 2**19 - 1
"""What all arrays' bounds must stay under for sums in quanta of 2^-44 to fit one int64."""

THREADED_FROM = 2**20
"""Numbers to fold or divide from which starting threads pays, unless blocks are so short that threads would
mostly wait for each other between two of them."""


class FloatSums:
    """Sums over updates of some named floating or complex arrays.

    Args:
        entries: Shapes and dtypes of the arrays.
        threads: How many threads may work at most; None for one on each core this process may use.
        room: Memory for the sums, of another `FloatSums` that is no longer used: new memory costs a large
            model as much as half a pass.
    """

    def __init__(
        self, entries: Mapping[str, Entry], threads: int | None, room: FloatSums | None = None
    ) -> None:
        self._entries = entries
        self._threads = threads or available_cores()
        sizes = {name: size_of(entry) for name, entry in entries.items()}
        size = sum(sizes.values())
        self._kernels = kernels_for(size)
        self._blocks = list(cut(sizes, self._kernels.block))
        self._room: Int64 = (
            np.empty(size, np.int64)
            if room is None or room._torn or room._room.size != size  # torn: a thread may still be at work
            else room._room
        )
        self._words = self._room
        self._begun = False
        self._torn: bool = False
        self._high: Int64 | None = None
        self._bounds = dict.fromkeys(entries, 0)  # on each array's sum of weight times largest magnitude

    def fold(self, updates: Sequence[tuple[Arrays, int]]) -> None:
        """Add updates times their weights in one pass: all of them, or, after an error, none.

        Raises:
            InvalidUpdate: If a value is not finite.
            AggregationOverflow: If an array's bound would reach `LIMIT`.
            LightningFLError: If an interrupt tore the sums before.
        """
        self._check_whole()
        if not updates:
            return
        flats, weights = self._flattened(updates), _weights(updates)
        peaks = Peaks(self._blocks, self._entries, len(updates))
        self._torn = True
        try:
            self._add(flats, peaks)
            bounds = grown(self._bounds, peaks, weights)
            if self._high is None and max(bounds.values(), default=0) >= ONE_WORD:
                self._undo(flats, peaks)
                self._widen()
                self._add(flats, peaks)
        except Exception:
            self._undo(flats, peaks)
            self._torn = False
            raise
        self._bounds, self._torn = bounds, False

    def merge(self, other: FloatSums) -> None:
        """Add sums of the same arrays over other updates, or raise `AggregationOverflow` and add nothing."""
        bounds = {name: bound + other._bounds[name] for name, bound in self._bounds.items()}
        for name, bound in bounds.items():
            if bound >= LIMIT:
                raise overflow(f"array `{name}`", bound)
        words = [(self._total, other._total)]
        if other._high is not None or max(bounds.values(), default=0) >= ONE_WORD:
            self._widen()
        if self._high is not None:
            words.append((self._high, other.second_words()))
        self._torn = True
        for mine, others in words:
            np.add(mine, others, out=mine)
        self._bounds, self._torn = bounds, False

    @property
    def _total(self) -> Int64:
        """The first word of all sums. The first pass sets each block to zero itself, which saves a pass."""
        self._check_whole()
        if not self._begun:
            self._words[:] = 0
            self._begun = True
        return self._words

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
            raise overflow("the sum", float(np.abs(high.astype(np.float64)).max()) * QUANTUM_HIGH)
        self._words, self._high, self._begun = total, high, True

    def mean(self, count: int, out: Arrays) -> None:
        """Divide by ``count``, rounding once to the dtype of each array to write to, and write to ``out``."""
        means = self._flat_views(out)

        def divide(blocks: Iterable[Block]) -> None:
            for _, name, part, place in blocks:
                self._kernels.mean(*self._sums(place), float(count), means[name][part])

        self._run_blocks(divide, self._total.size)

    def mean_of(self, updates: Sequence[tuple[Arrays, int]], count: int, out: Arrays) -> None:
        """Divide the sums of these updates alone by ``count``, with the bits and errors of `fold` and `mean`.

        Each block is summed and divided before the next, so its sums never leave the processor's cache; it
        gets a second word if its own numbers need one.
        """
        flats, weights, means = self._flattened(updates), _weights(updates), self._flat_views(out)
        peaks = Peaks(self._blocks, self._entries, len(updates))

        def average(blocks: Iterable[Block]) -> None:
            scratch: Int64 = np.empty((2, self._kernels.block), np.int64)
            for block in blocks:
                number, name, part, _ = block
                total, second = scratch[:, : part.stop - part.start]
                for high in (None, second):
                    scratch[:] = 0
                    peaks.seen[number] = 0
                    for values, factors in groups(flats, block):
                        peaks.note(number, self._kernels.fold(total, high, values, factors))
                    (bound,) = terms_bound(weights, peaks.of_block(number)[None])
                    if bound < ONE_WORD:
                        break
                if bound < LIMIT:  # otherwise the sums mean nothing, and `grown` says why
                    self._kernels.mean(total, high, float(count), means[name][part])

        self._run_blocks(average, self._words.size * len(flats))
        grown(self._bounds, peaks, weights)

    def _flattened(self, updates: Iterable[tuple[Arrays, int]]) -> FlatUpdates:
        return [
            ({name: flat(arrays[name], entry.dtype) for name, entry in self._entries.items()}, weight)
            for arrays, weight in updates
        ]

    def _flat_views(self, out: Arrays) -> dict[str, Array]:
        return {name: out[name].reshape(-1).view(part_of(out[name].dtype)) for name in self._entries}

    def _add(self, flats: FlatUpdates, peaks: Peaks) -> None:
        """Add updates, noting the magnitudes seen so far."""
        begun = self._begun

        def add(blocks: Iterable[Block]) -> None:
            for block in blocks:
                if not begun:
                    self._words[block.place] = 0
                for values, weights in groups(flats, block):
                    peaks.note(block.number, self._kernels.fold(*self._sums(block.place), values, weights))

        self._run_blocks(add, self._words.size * len(flats))
        self._begun = True

    def _undo(self, flats: FlatUpdates, peaks: Peaks) -> None:
        """Take out all terms that were seen, the last first: after an error, what is left can be."""
        for block in self._blocks:
            for values, weights in reversed([*groups(flats, block, done=peaks.seen[block.number])]):
                self._kernels.unfold(*self._sums(block.place), values, weights)
                peaks.seen[block.number] -= len(values)

    def _sums(self, place: slice) -> tuple[Int64, Int64 | None]:
        return self._words[place], None if self._high is None else self._high[place]

    def _widen(self) -> None:
        """Give every sum, once begun, its second word, if it has none."""
        if self._high is None:
            self._high = self._words >> SHIFT

    def _check_whole(self) -> None:
        if self._torn:
            raise LightningFLError(
                "an interrupt came in the midst of an earlier addition: what the sums hold is not known. Call"
                " `reset()` and add the updates again"
            )

    def _run_blocks(self, work: Callable[[Iterable[Block]], None], numbers: int) -> None:
        """Run ``work`` over all blocks, on several threads where that pays."""
        count_folded(numbers)
        long = 2 * self._words.size >= len(self._blocks) * self._kernels.block  # on average
        threads = min(self._threads, len(self._blocks)) if long and numbers >= THREADED_FROM else 1
        run(work, self._blocks, threads)


def _weights(updates: Sequence[tuple[Arrays, int]]) -> Array:
    return np.array([weight for _, weight in updates], np.float64)
