"""The exact mean's arithmetic: a few float64 formulas that read the same for a number and for an array.

numpy runs them on blocks, numba compiles the very same functions for its loops
(`lightning_fl_ext.aggregation.kernels`), so both give the same bits by construction. Every operation is an
IEEE 754 addition, multiplication or division, rounded to nearest; nothing may be reassociated or contracted.

Sources: T. J. Dekker, "A floating-point technique for extending the available precision", 1971 (`split`,
the product's error, and the split of a term by a large constant); D. E. Knuth, TAOCP vol. 2, 4.2.2
(`two_sum`); J. Demmel and H. D. Nguyen, "Fast reproducible floating-point summation", 2013 (bins).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
"""An array of float64; inside a compiled loop, one float64."""
Int64 = NDArray[np.int64]
"""An array of int64; inside a compiled loop, one int64."""

QUANTUM_HIGH = 2.0**-8
QUANTUM_LOW = 2.0**-44
SHIFT = 36
"""One high quantum is 2^36 low ones."""
LIMIT = 2.0**43
"""What a term, and a sum of magnitudes, must stay under: half of 2^52 high quanta."""

NARROW = 2.0**19
"""What a term stays under whose low quanta, less than 2^63, fit an int64."""

SHORT = 2**27
"""Counts below it have at most 27 bits, and units from it on leave 26: a product of both is exact."""

_TO_HIGH = 1.5 * 2.0**52 * QUANTUM_HIGH
_TO_LOW = 1.5 * 2.0**52 * QUANTUM_LOW
_HIGH_ZERO = int(np.float64(_TO_HIGH).view(np.int64))
_LOW_ZERO = int(np.float64(_TO_LOW).view(np.int64))
_HALF_WIDTH = 2.0**27 + 1


def bits_of(number: Float64) -> Int64:
    """Return the 64 bits of a float64 as an integer: magnitudes of neighbours differ by one."""
    return number.view(np.int64)


def float_of(bits: Int64) -> Float64:
    """Return the float64 with these bits."""
    return bits.view(np.float64)


def bins(values: Float64, weight: float) -> tuple[Int64, Int64]:
    """Split ``weight * values`` into whole multiples of `QUANTUM_HIGH` and of `QUANTUM_LOW`.

    Adding 1.5 * 2^52 quanta rounds to a multiple of the quantum and leaves the multiple in the last bits of
    the float64, where it is read off as an integer. What is left goes to the next quantum.

    Args:
        values: Any shape; magnitude of ``weight * values`` at most `LIMIT`.
        weight: A whole number with which the product is exact in float64.

    Returns:
        The multiples, up to 2^51 and 2^35 in magnitude. Together they miss the product by at most 2^-45.

    Example:
        >>> high, low = bins(np.array([1.25, 2.0**-30, 2.0**-46]), 3.0)
        >>> (high * QUANTUM_HIGH).tolist(), low.tolist()
        ([3.75, 0.0, 0.0], [0, 49152, 1])
    """
    product = weight * values
    high = product + _TO_HIGH
    low = (product - (high - _TO_HIGH)) + _TO_LOW
    return bits_of(high) - _HIGH_ZERO, bits_of(low) - _LOW_ZERO


def quanta(values: Float64, weight: float, into: Int64) -> None:
    """Write ``(high << SHIFT) + low`` of `bins` at half the cost, where products stay under `NARROW`.

    One rounding does: a high quantum is an even number of low ones, so that both break ties alike.

    Args:
        values: Any shape, float32 or float64; magnitude of ``weight * values`` under `NARROW`. For others
            something is written that depends on them and the weight alone.
        weight: As for `bins`.
        into: Of the same shape.

    Example:
        >>> values, terms = np.array([1.25, -1000.3, 3 * 2.0**-46]), np.empty(3, np.int64)
        >>> quanta(values, 3.0, terms)
        >>> high, low = bins(values, 3.0)
        >>> (terms == (high << SHIFT) + low).all()
        np.True_
    """
    products = values.astype(np.float64)
    products *= weight / QUANTUM_LOW
    np.rint(products, out=products)
    np.copyto(into, products, casting="unsafe")


def two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """Return the rounded sum and its error: ``a + b`` exactly, as two float64."""
    total = a + b
    b_share = total - a
    return total, (a - (total - b_share)) + (b - b_share)


def split(a: Float64 | float) -> tuple[Any, Any]:
    """Halve the significand: ``a`` exactly, as two float64 of at most 26 bits."""
    scaled = _HALF_WIDTH * a
    high = scaled - (scaled - a)
    return high, a - high


def remainder(total: Float64, error: Float64, quotient: Float64, count: float) -> Float64:
    """Return ``total + error - quotient * count``, rounded once, for a ``quotient`` near it."""
    product = quotient * count
    q_high, q_low = split(quotient)
    n_high, n_low = split(count)
    product_error = q_low * n_low - (((product - q_high * n_high) - q_low * n_high) - q_high * n_low)
    left: Float64 = ((total - product) - product_error) + error
    return left


def divide(high: Int64, low: Int64, count: float) -> Float64:
    """Divide ``high * QUANTUM_HIGH + low * QUANTUM_LOW`` by ``count``, rounded once, half to even.

    Args:
        high: Sums of multiples, at most 2^53 in magnitude.
        low: The same.
        count: A whole number from 1 to 2^43.

    Why one correction suffices: the first division leaves at most two units in the last place, so the
    corrected quotient is off by 2^-51 of one; and a multiple of 2^-44 divided by a whole number under 2^49
    lies on a midpoint of two float64 or at least 2^-50 of a unit away from it.

    Example:
        >>> divide(np.array([256]), np.array([0]), 3.0)
        array([0.33333333])
    """
    total, error = two_sum(np.float64(QUANTUM_HIGH) * high, np.float64(QUANTUM_LOW) * low)
    guess = total / count
    return guess + remainder(total, error, guess, count) / count


def divide_to_odd(high: Int64, low: Int64, count: float, unit: int) -> Float64:
    """Divide like `divide`, with fewer bits, the last of which is set unless the quotient is exact.

    Rounding the result on, to nearest and to at least two bits fewer, gives what rounding the exact quotient
    once gives: no tie is made or lost on the way (S. Boldo and G. Melquiond, "Emulation of FMA and correctly
    rounded sums: proved algorithms using rounding to odd", 2008).

    Args:
        high: As for `divide`.
        low: As for `divide`.
        count: As for `divide`.
        unit: ``2**k``, at least 8, leaves out the last ``k`` of the 53 bits. From `SHORT` on, and with a
            count under it, half the work is saved.

    Example:
        >>> np.float64(divide_to_odd(np.array([768, 770]), np.array([0, 0]), 2.0, 2**50)).tolist()
        [1.5, 1.75]
    """
    total, error = two_sum(np.float64(QUANTUM_HIGH) * high, np.float64(QUANTUM_LOW) * low)
    near = (bits_of(total * (1.0 / count)) + unit // 2) & -unit
    if count < SHORT <= unit:
        left_out = (total - float_of(near) * count) + error
    else:
        left_out = remainder(total, error, float_of(near), count)
    below = near - unit * (left_out * total < 0)
    return float_of(below | (unit * (left_out != 0)))
