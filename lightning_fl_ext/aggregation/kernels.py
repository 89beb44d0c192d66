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
    NARROW,
    SHIFT,
    Float64,
    Int64,
    bins,
    bits_of,
    divide,
    divide_to_odd,
    float_of,
    quanta,
    remainder,
    split,
    two_sum,
)

Array = NDArray[Any]
Terms = tuple[Array, ...]
Weights = tuple[float, ...]

UPDATES_PER_PASS = 4
"""Blocks that a call of `Kernels.fold` takes, if not one: the sums are read and written once for all."""

FUSED_FROM = 2**17
"""Floating elements in a model from which a second or two of compilation, once a process, pays at once."""

COMPILE_AFTER = 2**28
"""Numbers folded in a process after which it pays for every model: some seconds of the loops in numpy."""

_folded = 0


class Kernels(NamedTuple):
    """One implementation of the loops, and the block length that keeps it in the processor's cache."""

    block: int
    fold: Callable[[Int64, Int64 | None, Terms, Weights], Float64]
    """Add a block of float32 or float64, or `UPDATES_PER_PASS` of them, each times its weight, to a block of
    sums, in place, all or after an error none, without looking; return each block's largest magnitude, not
    finite if a value is not.

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
            self.single(total, high, count, 2**27, out)
        else:  # by way of 24 bits rounded to odd: ml_dtypes rounds once from float32, twice from float64
            odd = np.empty(out.shape, np.float32)
            self.single(total, high, count, 2**29, odd)
            out[...] = odd.astype(out.dtype)


def kernels_for(size: int) -> Kernels:
    """Return the loops for a model of ``size`` floating elements: fused where it pays and numba is there."""
    return (_fused() or _BLOCKED) if size >= FUSED_FROM or _folded >= COMPILE_AFTER else _BLOCKED


def count_folded(numbers: int) -> None:
    """Count what this process has folded so far."""
    global _folded
    _folded += numbers


def _fold(total: Int64, high: Int64 | None, values: Terms, weights: Weights, into: np.ufunc) -> Float64:
    with np.errstate(all="ignore"):  # a signalling NaN is invalid in every operation
        peaks = np.array([np.abs(block).max() for block in values], np.float64)
        terms = [
            _words(block, weight, first_alone=high is None and weight * peak < NARROW)
            for block, weight, peak in zip(values, weights, peaks, strict=True)
        ]
    sums = [total] if high is None else [total, high]
    for words in terms:  # added when there was memory for all
        for each, word in zip(sums, words, strict=False):
            into(each, word, out=each)
    return peaks


def _words(values: Array, weight: float, first_alone: bool) -> tuple[Int64, ...]:
    """Give the words of terms; the first alone, of terms under `NARROW`, at half the cost."""
    if first_alone:
        terms: Int64 = np.empty(values.shape, np.int64)
        quanta(values, weight, terms)
        return (terms,)
    high, low = bins(values.astype(np.float64), weight)
    return (high << SHIFT) + low, high


def _parts(total: Int64, high: Int64 | None) -> tuple[Int64, Int64]:
    if high is None:
        high = total >> SHIFT
    return high, total - (high << SHIFT)


def _double(total: Int64, high: Int64 | None, count: float, out: Array) -> None:
    out[...] = divide(*_parts(total, high), count)


def _single(total: Int64, high: Int64 | None, count: float, unit: int, out: Array) -> None:
    out[...] = divide_to_odd(*_parts(total, high), count, unit)


_BLOCKED = Kernels(2**16, partial(_fold, into=np.add), partial(_fold, into=np.subtract), _double, _single)


def _fold_loops(real: Any, unsigned: Any, sign: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Write out the loops for four blocks and for one: those that a compiler turns into vector code.

    As integers, magnitudes order like the floats, NaN above infinity. The second word has a loop of its own
    because one with more arrays would need more checks for overlap than LLVM's vectoriser makes.
    """
    mask = unsigned(np.iinfo(unsigned).max >> 1)

    def fold_four(total: Any, high: Any, values: Any, weights: Any, peaks: Any) -> None:
        a, b, c, d = values
        wa, wb, wc, wd = weights
        ia, ib, ic, id_ = a.view(unsigned), b.view(unsigned), c.view(unsigned), d.view(unsigned)
        pa = pb = pc = pd = unsigned(0)
        for i in range(total.size):
            ha, la = bins(a[i], wa)
            hb, lb = bins(b[i], wb)
            hc, lc = bins(c[i], wc)
            hd, ld = bins(d[i], wd)
            total[i] += sign * (((ha + hb + hc + hd) << SHIFT) + (la + lb + lc + ld))
            pa, pb = max(pa, ia[i] & mask), max(pb, ib[i] & mask)
            pc, pd = max(pc, ic[i] & mask), max(pd, id_[i] & mask)
        if high is not None:
            for i in range(high.size):
                high[i] += sign * (
                    bins(a[i], wa)[0] + bins(b[i], wb)[0] + bins(c[i], wc)[0] + bins(d[i], wd)[0]
                )
        peaks[0], peaks[1] = unsigned(pa).view(real), unsigned(pb).view(real)
        peaks[2], peaks[3] = unsigned(pc).view(real), unsigned(pd).view(real)

    def fold_one(total: Any, high: Any, values: Any, weights: Any, peaks: Any) -> None:
        block, weight = values[0], weights[0]
        bits, peak = block.view(unsigned), unsigned(0)
        for i in range(total.size):
            high_term, low_term = bins(block[i], weight)
            total[i] += sign * ((high_term << SHIFT) + low_term)
            peak = max(peak, bits[i] & mask)
        if high is not None:
            for i in range(high.size):
                high[i] += sign * bins(block[i], weight)[0]
        peaks[0] = unsigned(peak).view(real)

    return fold_four, fold_one


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
        from numba.extending import overload, register_jitable
    except ImportError:
        return None
    # Where numba compiles, a number has no view, and one of numpy's that is made of it has.
    overload(bits_of)(lambda number: lambda number: np.float64(number).view(np.int64))
    overload(float_of)(lambda bits: lambda bits: np.int64(bits).view(np.float64))
    for formula in (bins, two_sum, split, remainder, divide, divide_to_odd, _parts_at):
        register_jitable(formula)
    # No fastmath: it would rewrite (x + M) - M. numpy's error model: a division needs no check for zero.
    compiled = njit(nogil=True, error_model="numpy")

    def fold_with(sign: int) -> Callable[[Int64, Int64 | None, Terms, Weights], Float64]:
        single = [compiled(loop) for loop in _fold_loops(np.float32, np.uint32, sign)]
        double = [compiled(loop) for loop in _fold_loops(np.float64, np.uint64, sign)]

        def fold(total: Int64, high: Int64 | None, values: Terms, weights: Weights) -> Float64:
            peaks = np.empty(len(values))
            four, one = single if values[0].itemsize == 4 else double
            (four if len(values) == UPDATES_PER_PASS else one)(total, high, values, weights, peaks)
            return peaks

        return fold

    return Kernels(2**17, fold_with(1), fold_with(-1), compiled(_double_loop), compiled(_single_loop))
