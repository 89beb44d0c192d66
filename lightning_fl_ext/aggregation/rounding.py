"""Rounding once from a wider float to a narrow one, where going by way of float32 would round twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round float64 once, half to even, to a floating dtype.

    `ml_dtypes` rounds once from float32, and twice from float64, so those dtypes are reached by way of
    float32 rounded to odd (S. Boldo and G. Melquiond, "Emulation of FMA and correctly rounded sums: proved
    algorithms using rounding to odd", 2008).

    Args:
        values: float64, any shape.
        dtype: A real floating dtype.

    Example:
        >>> import ml_dtypes
        >>> rounded(np.array([1 + 2.0**-8 + 2.0**-40]), np.dtype(ml_dtypes.bfloat16)).astype(float)
        array([1.0078125])
    """
    with np.errstate(over="ignore"):
        if dtype.itemsize >= 4:
            return values.astype(dtype, copy=False)
        near = values.astype(np.float32)
        return to_odd(near, values - near).astype(dtype)


def midpoint(low: Array, high: Array, dtype: np.dtype[Any]) -> Array:
    """Give the mean of two values, rounded once to a floating dtype.

    Args:
        low: float32, or float64 if that is the dtype.
        high: The same, of the same shape.
        dtype: A real floating dtype, no wider.

    Example:
        >>> midpoint(np.array([1.0]), np.array([1.7e308]), np.dtype(np.float64))
        array([8.5e+307])
    """
    half = low.dtype.type(0.5)
    if dtype.itemsize < 4:
        low, high = low * half, high * half  # exact: float32 has room below the narrow dtypes
        total = low + high
        part = total - low
        return to_odd(total, (low - (total - part)) + (high - part)).astype(dtype)
    with np.errstate(over="ignore"):
        middle: Array = (low + high) * half
    over = np.isinf(middle)
    if over.any():
        middle[over] = low[over] * half + high[over] * half
    return middle


def to_odd(near: NDArray[np.float32], left_out: Array) -> NDArray[np.float32]:
    """Of the two float32 around a value, give the one whose last bit is set, or the value if it is one.

    Args:
        near: The value, rounded to nearest.
        left_out: What that left out; only its sign counts.
    """
    even = (near.view(np.uint32) & 1) == 0
    beyond = np.nextafter(near, np.copysign(np.float32(np.inf), left_out).astype(np.float32))
    return np.where(even & (left_out != 0), beyond, near)
