"""The weighted sum of an integer or bool array, in whole numbers that cannot overflow."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import SHIFT
from lightning_fl_ext.aggregation.structure import Entry

Array = NDArray[Any]
Words = NDArray[np.uint64]

_MASK = 2**64 - 1


class IntegerSum(NamedTuple):
    """A sum that is never changed in place: int64 while it surely fits, else Python integers."""

    entry: Entry
    values: Array
    bound: int = 0

    @classmethod
    def zero(cls, entry: Entry) -> IntegerSum:
        """Return the empty sum of arrays with this shape and dtype."""
        return cls(entry, np.zeros(prod(entry.shape), np.int64))

    def add(self, array: Array, weight: int) -> IntegerSum:
        """Return this sum with an array times a weight added.

        Example:
            >>> entry = Entry((2,), np.dtype(np.int64))
            >>> total = IntegerSum.zero(entry).add(np.array([2**62, -1]), 3)
            >>> total.values.tolist() == [3 * 2**62, -3], total.mean(3).tolist() == [2**62, -1]
            (True, True)
        """
        largest = max(int(array.max()), -int(array.min())) if array.size else 0
        return self._accumulate(array.reshape(-1), weight, weight * largest)

    def merge(self, other: IntegerSum) -> IntegerSum:
        """Return the sum of both."""
        return self._accumulate(other.values, 1, other.bound)

    def mean(self, count: int) -> Array:
        """Divide by ``count``: integers rounded half to even, bools by majority, ties False."""
        if self.entry.dtype == np.bool_:
            return (2 * self.values > count).reshape(self.entry.shape)
        quotient, rest = self.values // count, self.values % count
        up = (2 * rest > count) | ((2 * rest == count) & (quotient % 2 == 1))
        nearest: Array = (quotient + up).astype(self.entry.dtype)
        return nearest.reshape(self.entry.shape)

    def words(self) -> tuple[Words, Words]:
        """Give the sum modulo 2^64, and its multiples of 2^36, rounded down: either adds up by itself."""
        if self.values.dtype == object:
            low = np.array([int(v) & _MASK for v in self.values], np.uint64)
            return low, np.array([(int(v) >> SHIFT) & _MASK for v in self.values], np.uint64)
        return self.values.view(np.uint64), (self.values >> SHIFT).view(np.uint64)

    @classmethod
    def from_words(cls, entry: Entry, low: Words, high: Words | None) -> IntegerSum:
        """Take sums of what :meth:`words` gave; without the second word they must fit 64 bits."""
        if high is None:
            values: Array = low.view(np.int64)
        else:
            multiples = high.view(np.int64)
            rest = low - (high << np.uint64(SHIFT))
            small = not multiples.size or -(2**26) < multiples.min() <= multiples.max() < 2**26
            kind = np.dtype(np.int64 if small else object)
            values = multiples.astype(kind) * 2**SHIFT + rest.astype(kind)
        largest = max(int(values.max()), -int(values.min())) if values.size else 0
        return cls(entry, values, largest)

    def _accumulate(self, values: Array, weight: int, bound: int) -> IntegerSum:
        bound += self.bound
        dtype = np.dtype(np.int64 if bound < 2**63 else object)
        terms = values.astype(dtype) * weight
        return self._replace(values=self.values.astype(dtype) + terms, bound=bound)
