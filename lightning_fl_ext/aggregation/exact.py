"""`ExactMean`: the weighted mean of model updates, the same to the bit for every order and grouping."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.kernels import kernels_for
from lightning_fl_ext.aggregation.structure import INTEGERS, Arrays, check_update, structure_of
from lightning_fl_ext.aggregation.sums import LIMIT, FloatSum, IntegerSum, overflow
from lightning_fl_ext.errors import LightningFLError

MAX_UPDATES = 2**17

THREADED_FROM = 2**18
"""Elements to fold or divide from which starting threads pays."""


class _Block(NamedTuple):
    name: str
    part: slice


class _Folded(NamedTuple):
    block: _Block
    update: int
    need: int


class ExactMean:
    """The exact weighted mean of arrays, in memory that does not grow with the number of updates.

    Add updates one by one as they arrive, or several at a time, which is faster; merge partial means of
    other aggregators; read the result. The same updates give the same bits in whatever order, grouping,
    tree of merges or number of threads.

    Floating arrays: the terms weight times value are summed within 2^-45 each (2^-44 if the model's array is
    float64), the sum of the terms is exact, and its quotient by the total weight is rounded once, half to
    even, to the global model's dtype. Where every term is a multiple of 2^-44, as with float32 of magnitude
    2^-21 and more, that is the exact mean rounded once. Complex arrays: the same for either part. Integer
    arrays: the exact mean rounded half to even. Bool arrays: the weighted majority, ties False.

    Args:
        like: The global model's arrays in state-dict order. Names, shapes and dtypes are read, not values.
        threads: How many threads fold at most; by default one for each core this process may use.

    Raises:
        TypeError: If ``like`` holds an array that has no mean here.
        ValueError: If ``threads`` is less than 1.

    Example:
        >>> model = {"w": np.zeros(2, np.float32), "steps": np.array(0)}
        >>> mean = ExactMean(model)
        >>> mean.add({"w": np.array([0.1, 1.0], np.float32), "steps": np.array(3)}, weight=1)
        >>> mean.add({"w": np.array([0.2, 2.0], np.float32), "steps": np.array(4)}, weight=3)
        >>> mean.result()
        {'w': array([0.175, 1.75 ], dtype=float32), 'steps': array(4)}
    """

    def __init__(self, like: Arrays, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"`threads`: expected a positive number or None, got {threads}")
        self._structure = structure_of(like)
        self._floats: dict[str, FloatSum] = {}
        self._integers: dict[str, IntegerSum] = {}
        for name, entry in self._structure.items():
            if entry.dtype in INTEGERS:
                self._integers[name] = IntegerSum.zero(entry)
            else:
                self._floats[name] = FloatSum(entry)
        size = sum(total.high.size for total in self._floats.values())
        self._kernels = kernels_for(size)
        step = self._kernels.block
        self._blocks = [
            _Block(name, slice(start, min(start + step, total.high.size)))
            for name, total in self._floats.items()
            for start in range(0, total.high.size, step)
        ]
        self._size = size
        self._threads = threads or _available_cores()
        self._total_weight = 0
        self._num_updates = 0

    @property
    def total_weight(self) -> int:
        """Sum of the weights of all updates."""
        return self._total_weight

    @property
    def num_updates(self) -> int:
        """Number of updates."""
        return self._num_updates

    def add(self, arrays: Arrays, weight: int) -> None:
        """Add one update; see `add_many`."""
        self.add_many([(arrays, weight)])

    def add_many(self, updates: Iterable[tuple[Arrays, int]]) -> None:
        """Add several updates in one pass over the sums: all of them, or none.

        Args:
            updates: Arrays under the global model's names, in any order, with the update's weight: a whole
                number from 1 to 2^26, such as its example count. Arrays are read in place, and copied only
                if they are not contiguous or not aligned; they may be read-only and are not kept.

        Raises:
            InvalidUpdate: If an update lacks the global model's names, shapes and dtypes, holds a value
                that is not finite, or has an unusable weight.
            AggregationOverflow: If more than 2^17 updates came together, a weight is over 2^26, or for some
                array the sum of weight times largest magnitude, each rounded up, would reach 2^43. Which
                sets of updates overflow does not depend on their order. After any error the sums are, to
                the bit, what they were.
        """
        updates = list(updates)
        for i, (arrays, weight) in enumerate(updates):
            check_update(f"update {i}", arrays, weight, self._structure)
        _check_number(self._num_updates + len(updates))
        weights = [int(weight) for _, weight in updates]
        integers = dict(self._integers)
        for name in integers:
            for (arrays, _), weight in zip(updates, weights, strict=True):
                integers[name] = integers[name].add(arrays[name], weight)
        flats = [
            {name: total.flat(arrays[name]) for name, total in self._floats.items()} for arrays, _ in updates
        ]
        self._fold(flats, weights)
        self._integers = integers
        self._total_weight += sum(weights)
        self._num_updates += len(weights)

    def merge(self, other: ExactMean) -> None:
        """Add the updates of another mean of the same model, which stays as it is.

        Raises:
            InvalidUpdate: If the other mean was made for another model.
            AggregationOverflow: As if its updates were added here. The sums are then what they were.
        """
        if self._structure != other._structure:
            differing = [
                name
                for name in self._structure | other._structure
                if self._structure.get(name) != other._structure.get(name)
            ]
            raise InvalidUpdate(
                f"`other`: expected a mean of the same model, got one that differs in {len(differing)} arrays"
                f" {differing[:5]}. Build both from the same global model"
            )
        _check_number(self._num_updates + other._num_updates)
        for name, total in self._floats.items():
            bound = total.bound + other._floats[name].bound
            if bound >= LIMIT:
                raise overflow(f"array `{name}`", bound)
        for name, total in self._floats.items():
            total.merge(other._floats[name])
        self._integers = {name: total.merge(other._integers[name]) for name, total in self._integers.items()}
        self._total_weight += other._total_weight
        self._num_updates += other._num_updates

    def result(self) -> dict[str, NDArray[Any]]:
        """Return the mean of what was added so far: new arrays, in the global model's order and dtypes.

        Raises:
            LightningFLError: If nothing was added.
        """
        if not self._num_updates:
            raise LightningFLError("nothing to average: expected at least one update. Add one first")
        flats = {name: np.empty(total.high.size, total.dtype) for name, total in self._floats.items()}

        def divide(blocks: Sequence[_Block]) -> None:
            for name, part in blocks:
                total = self._floats[name]
                self._kernels.mean(
                    total.high[part], total.low[part], float(self._total_weight), flats[name][part]
                )

        self._share_out(divide, self._size)
        return {
            name: flats[name].view(entry.dtype).reshape(entry.shape)
            if name in flats
            else self._integers[name].mean(self._total_weight)
            for name, entry in self._structure.items()
        }

    def _fold(self, flats: Sequence[Arrays], weights: Sequence[int]) -> None:
        """Fold every block of every update, checking and folding while it is in cache; undo all on error."""
        journal: list[_Folded] = []

        def fold(blocks: Sequence[_Block]) -> None:
            for block in blocks:
                name, part = block
                total = self._floats[name]
                room = LIMIT - total.bound
                for i, (arrays, weight) in enumerate(zip(flats, weights, strict=True)):
                    where = f"update {i}, array `{name}`"
                    need = total.fold(arrays[name][part], part, weight, room, self._kernels, where)
                    journal.append(_Folded(block, i, need))
                    room -= need

        try:
            self._share_out(fold, self._size * len(weights))
            bounds = self._bounds_after(journal)
        except BaseException:
            for (name, part), i, _ in journal:
                self._floats[name].unfold(flats[i][name][part], part, weights[i], self._kernels)
            raise
        for name, bound in bounds.items():
            self._floats[name].bound = bound

    def _bounds_after(self, journal: Iterable[_Folded]) -> dict[str, int]:
        """Return the arrays' bounds: they grow by each update's largest need among the array's blocks."""
        needs: dict[tuple[str, int], int] = {}
        for (name, _), i, need in journal:
            needs[name, i] = max(need, needs.get((name, i), 0))
        bounds = {name: total.bound for name, total in self._floats.items()}
        for (name, _), need in needs.items():
            bounds[name] += need
            if bounds[name] >= LIMIT:
                raise overflow(f"array `{name}`", bounds[name])
        return bounds

    def _share_out(self, work: Callable[[Sequence[_Block]], None], elements: int) -> None:
        """Run ``work`` on every block, on several threads if there are many elements."""
        threads = min(self._threads, len(self._blocks)) if elements >= THREADED_FROM else 1
        if threads <= 1:
            work(self._blocks)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [self._blocks[i::threads] for i in range(threads)]))


def _check_number(updates: int) -> None:
    if updates > MAX_UPDATES:
        raise AggregationOverflow(
            f"expected at most {MAX_UPDATES} updates, got {updates}: more could lose a bit. Average in"
            " stages: a mean of means, with the total weights as weights"
        )


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
