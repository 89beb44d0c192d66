"""Blocks of a model's floating arrays, and the terms of updates in them.

A block is a piece of one array that stays in a processor's cache while all updates pass by; several threads
take the next block each.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.kernels import UPDATES_PER_PASS, Terms, Weights
from lightning_fl_ext.aggregation.structure import PARTS, Arrays, Entry

Array = NDArray[Any]
FlatUpdates = Sequence[tuple[Arrays, int]]

_FIRST_HALF = np.uint64(2**64 - 2**27)


class Block(NamedTuple):
    """Some numbers of one array that follow each other."""

    number: int
    name: str
    part: slice
    """Of the flattened array."""
    place: slice
    """Of the sums, in which the arrays follow each other."""


def cut(sizes: Mapping[str, int], step: int) -> Iterable[Block]:
    """Cut arrays of these many numbers into blocks of at most ``step``.

    Example:
        >>> [(block.name, block.part, block.place.start) for block in cut({"a": 3, "none": 0, "b": 1}, 2)]
        [('a', slice(0, 2, None), 0), ('a', slice(2, 3, None), 2), ('b', slice(0, 1, None), 3)]
    """
    offset = number = 0
    for name, size in sizes.items():
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield Block(number, name, slice(start, stop), slice(offset + start, offset + stop))
            number += 1
        offset += size


def part_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the real numbers in an array."""
    return PARTS.get(dtype, dtype)


def size_of(entry: Entry) -> int:
    """Count the real numbers in an array."""
    return prod(entry.shape) * (entry.dtype.itemsize // part_of(entry.dtype).itemsize)


def flat(array: Array, dtype: np.dtype[Any]) -> Array:
    """View an array as contiguous, aligned real numbers, read-only; copy it only if it is not so."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and type(array) is np.ndarray):
        array = np.require(array, requirements=["C", "A", "E"])
    numbers: Array = array.reshape(-1)
    if dtype in PARTS:
        numbers = numbers.view(PARTS[dtype])
    if numbers.flags.writeable:  # numba compiles anew for arrays that are
        numbers.flags.writeable = False
    return numbers


def terms_per_update(dtype: np.dtype[Any]) -> int:
    """Count the terms that `groups` makes of an array of this dtype."""
    return 2 if part_of(dtype).itemsize == 8 else 1


def groups(flats: FlatUpdates, block: Block, done: int | None = None) -> Iterator[tuple[Terms, Weights]]:
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
        values.flags.writeable = False
    if values.itemsize == 4:
        return (values,)
    first = (values.view(np.uint64) & _FIRST_HALF).view(np.float64)
    with np.errstate(invalid="ignore"):
        return first, values - first


def run(work: Callable[[Iterable[Block]], None], blocks: Sequence[Block], threads: int) -> None:
    """Run ``work`` over all blocks, on so many threads, of which this is one; none goes on after an error."""
    if threads <= 1:
        work(blocks)
        return
    left = deque(blocks)  # each thread takes the next: a slow one holds nobody up

    def share() -> None:
        try:
            work(_taken_from(left))
        except BaseException:
            left.clear()
            raise

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share) for _ in range(threads - 1)]
        share()
        for other in others:
            other.result()


def available_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _taken_from(blocks: deque[Block]) -> Iterator[Block]:
    while True:
        try:
            yield blocks.popleft()
        except IndexError:
            return
