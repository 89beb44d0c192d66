"""The loops over blocks: in numpy, or fused by numba where it is installed and the model is large.

Both run the formulas of `lightning_fl_ext.aggregation.arithmetic` and give the same bits; they release the
interpreter lock, so that threads fold different blocks at the same time. Numba (extra ``fast``) is imported
on first use. Its on-disk cache stays off: it is made of pickles, and an installed package may be read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import (
    SHIFT,
    Float64,
    Int64,
    bins,
    bits_of,
    divide,
    divide_to_odd,
    float_of,
    remainder,
    split,
    two_sum,
)

Array = NDArray[Any]
Terms = tuple[Array, ...]
Weights = tuple[float, ...]

AT_ONCE = 4
"""Blocks that one call of `Kernels.fold` takes: the sums are then read and written once for all of them."""

FUSED_FROM = 2**17
"""Floating elements in a model from which a second or two of compilation, once a process, pays."""


class Kernels(NamedTuple):
    """One implementation of the loops, and the block length that keeps it in the processor's cache."""

    block: int
    fold: Callable[[Int64, Int64 | None, Terms, Weights], Float64]
    """Add blocks of float32 or float64, each times its weight, to a block of sums, in place, without looking;
    return each block's largest magnitude, which is not finite if one of its values is not.

    The first word of a sum is the number of low quanta modulo 2^64; the second, where there is one, is the
    sum of the high multiples, from which the multiple of 2^64 follows."""
    unfold: Callable[[Int64, Int64 | None, Terms, Weights], Float64]
    """Take out, to the bit, what `fold` with the same arguments added, whatever it was."""
    double: Callable[[Int64, Int64 | None, float, Array], None]
    """Write the sums divided by a count, rounded to nearest, to a block of float64."""
    single: Callable[[Int64, Int64 | None, float, int, Array], None]
    """Write the same divided to odd, with a unit, and rounded to nearest, to a block of float32."""

    def mean(self, total: Int64, high: Int64 | None, count: float, out: Array) -> None:
        """Write the sums divided by ``count``, rounded once to the dtype of ``out``, to ``out``."""
        if out.dtype == np.float64:
            self.double(total, high, count, out)
        elif out.dtype == np.float32:
            self.single(total, high, count, 2**24, out)
        else:  # by way of 24 bits rounded to odd: ml_dtypes rounds once from float32, twice from float64
            odd = np.empty(out.shape, np.float32)
            self.single(total, high, count, 2**29, odd)
            out[...] = odd.astype(out.dtype)


def kernels_for(size: int) -> Kernels:
    """Return the loops for a model of ``size`` floating elements: fused if large and numba is installed."""
    return (_fused() or _BLOCKED) if size >= FUSED_FROM else _BLOCKED


def _fold(total: Int64, high: Int64 | None, values: Terms, weights: Weights, into: np.ufunc) -> Float64:
    with np.errstate(all="ignore"):
        for block, weight in zip(values, weights, strict=True):
            high_terms, low_terms = bins(block.astype(np.float64), weight)
            into(total, (high_terms << SHIFT) + low_terms, out=total)
            if high is not None:
                into(high, high_terms, out=high)
    return np.array([np.maximum(block.max(), -block.min()) for block in values], np.float64)


def _parts(total: Int64, high: Int64 | None) -> tuple[Int64, Int64]:
    if high is None:
        high = total >> SHIFT
    return high, total - (high << SHIFT)


def _double(total: Int64, high: Int64 | None, count: float, out: Array) -> None:
    out[...] = divide(*_parts(total, high), count)


def _single(total: Int64, high: Int64 | None, count: float, unit: int, out: Array) -> None:
    out[...] = divide_to_odd(*_parts(total, high), count, unit)


_BLOCKED = Kernels(2**14, partial(_fold, into=np.add), partial(_fold, into=np.subtract), _double, _single)


def _fold_loop(real: Any, unsigned: Any, sign: int) -> Callable[[Any, Any, Any, Any, Any], None]:
    magnitude = unsigned(np.iinfo(unsigned).max >> 1)

    def fold(total: Any, high: Any, values: Any, weights: Any, peaks: Any) -> None:
        for i in range(total.size):
            high_sum = low_sum = np.int64(0)
            for j in range(len(values)):
                high_term, low_term = bins(np.float64(values[j][i]), weights[j])  # type: ignore[arg-type]
                high_sum += high_term  # type: ignore[assignment]
                low_sum += low_term  # type: ignore[assignment]
            total[i] += sign * ((high_sum << SHIFT) + low_sum)
            if high is not None:
                high[i] += sign * high_sum
        for j in range(len(values)):
            # As integers, magnitudes order like the floats, NaN above infinity; and the loop vectorises.
            bits, largest = values[j].view(unsigned), unsigned(0)
            for i in range(bits.size):
                largest = max(largest, bits[i] & magnitude)
            peaks[j] = unsigned(largest).view(real)

    return fold


def _parts_at(i: int, total: Any, high: Any) -> tuple[Any, Any]:
    part = total[i] >> SHIFT if high is None else high[i]
    return part, total[i] - (part << SHIFT)


def _double_loop(total: Any, high: Any, count: float, out: Array) -> None:
    for i in range(out.size):
        part, low = _parts_at(i, total, high)
        out[i] = divide(part, low, count)


def _single_loop(total: Any, high: Any, count: float, unit: int, out: Array) -> None:
    for i in range(out.size):
        part, low = _parts_at(i, total, high)
        out[i] = np.float32(divide_to_odd(part, low, count, unit))


@cache
def _fused() -> Kernels | None:
    """Prepare the compiled loops, or return None where numba is not installed."""
    try:
        from numba import njit
        from numba.extending import register_jitable
    except ImportError:
        return None
    for formula in (bits_of, float_of, bins, two_sum, split, remainder, divide, divide_to_odd, _parts_at):
        register_jitable(formula)
    # No fastmath: it would rewrite (x + M) - M. numpy's error model: a division needs no check for zero.
    compiled = njit(nogil=True, error_model="numpy")

    def fold_with(sign: int) -> Callable[[Int64, Int64 | None, Terms, Weights], Float64]:
        single = compiled(_fold_loop(np.float32, np.uint32, sign))
        double = compiled(_fold_loop(np.float64, np.uint64, sign))

        def fold(total: Int64, high: Int64 | None, values: Terms, weights: Weights) -> Float64:
            peaks = np.empty(len(values))
            (single if values[0].itemsize == 4 else double)(total, high, values, weights, peaks)
            return peaks

        return fold

    return Kernels(2**15, fold_with(1), fold_with(-1), compiled(_double_loop), compiled(_single_loop))
