"""Weighted sums of one array over any number of updates, kept without a rounding that depends on order."""

from __future__ import annotations

from math import ceil, isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.kernels import Kernels
from lightning_fl_ext.aggregation.structure import PARTS, Entry

Array = NDArray[Any]

LIMIT = 2**43
"""What the sum of weight times largest magnitude must stay under: there the bins' additions are exact."""

_HIGH_HALF = np.uint64(2**64 - 2**27)


class FloatSum:
    """The weighted sum of a floating or complex array: two float64 bins, 16 bytes for each real number.

    Every term is split into a multiple of 2^-8 and a multiple of 2^-44 by a rule that looks at nothing but
    the term (`lightning_fl_ext.aggregation.arithmetic.bins`), and sums of such multiples are exact under
    `LIMIT`. So the order of terms leaves no trace, and adding a term with the opposite weight takes it out
    again to the bit.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.dtype: np.dtype[Any] = PARTS.get(entry.dtype, entry.dtype)
        size = prod(entry.shape) * (entry.dtype.itemsize // self.dtype.itemsize)
        self.high, self.low = np.zeros(size), np.zeros(size)
        self.bound = 0

    def flat(self, array: Array) -> Array:
        """View an array as contiguous, aligned, read-only real numbers; copy it only if it is not so."""
        flat: Array = np.require(array, requirements=["C", "A", "E"]).reshape(-1).view(self.dtype)
        flat.flags.writeable = False
        return flat

    def fold(self, values: Array, block: slice, weight: int, room: int, kernels: Kernels, where: str) -> int:
        """Add a block of an update to its block of the sum, if that keeps every addition exact.

        Args:
            values: The block of the update, as `flat` views it; not empty.
            block: Where it belongs.
            weight: The update's weight.
            room: What weight times magnitude must stay under.
            kernels: The loops.
            where: What messages call the array.

        Returns:
            Weight times largest magnitude in the block, rounded up: what to take off the room.

        Raises:
            InvalidUpdate: If a value is NaN or infinite.
            AggregationOverflow: If there is not room enough. Either way the block of the sum is untouched.
        """
        values = self._widened(values)
        peak = kernels.peak(values)
        if not isfinite(peak):
            raise InvalidUpdate(
                f"{where}: expected finite values, got NaN or inf. Screen updates before adding"
            )
        need = ceil(weight * peak) if isfinite(weight * peak) else LIMIT
        if need >= room:
            raise overflow(where, LIMIT - room + need)
        self._add(values, block, weight, kernels)
        return need

    def unfold(self, values: Array, block: slice, weight: int, kernels: Kernels) -> None:
        """Take out, to the bit, what `fold` added."""
        self._add(self._widened(values), block, -weight, kernels)

    def merge(self, other: FloatSum) -> None:
        """Add another sum of the same array; the bounds' sum must be under `LIMIT`."""
        self.high += other.high
        self.low += other.low
        self.bound += other.bound

    def _widened(self, values: Array) -> Array:
        if values.dtype.itemsize < 4:
            values = values.astype(np.float32)
            values.flags.writeable = False
        return values

    def _add(self, values: Array, block: slice, weight: int, kernels: Kernels) -> None:
        high, low = self.high[block], self.low[block]
        if values.dtype == np.float32:
            kernels.fold(high, low, values, float(weight))
            return
        # 53 bits times a weight would be rounded; 26 bits and the 27 others are not.
        first = (values.view(np.uint64) & _HIGH_HALF).view(np.float64)
        for part in (first, values - first):
            kernels.fold(high, low, part, float(weight))


class IntegerSum(NamedTuple):
    """The weighted sum of an integer or bool array: int64 while it surely fits, else Python integers."""

    entry: Entry
    values: Array
    bound: int = 0

    @classmethod
    def zero(cls, entry: Entry) -> IntegerSum:
        """Return the empty sum."""
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
        return self._plus(array.reshape(-1), weight, weight * largest)

    def merge(self, other: IntegerSum) -> IntegerSum:
        """Return the sum of both."""
        return self._plus(other.values, 1, other.bound)

    def _plus(self, values: Array, weight: int, bound: int) -> IntegerSum:
        bound += self.bound
        dtype = np.dtype(np.int64 if bound < 2**63 else object)
        terms = values.astype(dtype) * weight
        return self._replace(values=self.values.astype(dtype) + terms, bound=bound)

    def mean(self, count: int) -> Array:
        """Divide by ``count``: integers rounded half to even, bools by majority, ties False."""
        if self.entry.dtype == np.bool_:
            return (2 * self.values > count).reshape(self.entry.shape)
        quotient, rest = self.values // count, self.values % count
        up = (2 * rest > count) | ((2 * rest == count) & (quotient % 2 == 1))
        nearest: Array = (quotient + up).astype(self.entry.dtype)
        return nearest.reshape(self.entry.shape)


def overflow(where: str, bound: int) -> AggregationOverflow:
    """Return the error for a sum whose bound would reach `LIMIT`."""
    return AggregationOverflow(
        f"{where}: the sum of weight times largest magnitude would reach {bound:.3e}, expected under 2^43"
        f" = {LIMIT:.3e}, up to which no bit is lost. Look for a diverging client, or give smaller weights"
    )
