"""How large values are: whether they are finite, a bound on them, and the norm of an update."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results.norm import update_norm as update_norm


def is_finite(array: NDArray[Any]) -> bool:
    """Tell whether an array holds neither NaN nor infinities, in one pass without a copy if it does not.

    Example:
        >>> is_finite(np.full(10, 3e38, dtype=np.float32)), is_finite(np.array([1.0, np.inf, -np.inf]))
        (True, False)
    """
    return array.dtype.kind in "biu" or math.isfinite(magnitude_bound(array)) or bool(finite(array).all())


def finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which values are finite, without the warning that a signalling NaN brings in bfloat16."""
    with np.errstate(invalid="ignore"):
        values: NDArray[np.bool_] = np.isfinite(array)
    return values


def first_not_finite(array: NDArray[Any]) -> str:
    """Say which value is the first that is not finite, and where.

    Example:
        >>> first_not_finite(np.array([[1.0, 2.0], [np.nan, np.inf]]))
        'nan at index [1, 0]'
    """
    flat = array.reshape(-1)
    index = int(np.flatnonzero(~finite(flat))[0])
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        return f"{flat[index]} at index {[int(i) for i in np.unravel_index(index, array.shape)]}"


def magnitude_bound(array: NDArray[Any]) -> float:
    """Give a number that no magnitude in the array exceeds; not finite if one is not, or if it overflows.

    The root of the sum of squares, a little enlarged for rounding, and for squares too small to count.
    """
    flat = np.ravel(array, order="K")
    if flat.dtype not in (np.float32, np.float64):
        flat = flat.view(flat.real.dtype) if flat.dtype.kind == "c" else flat.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return 1.01 * math.sqrt(float(np.dot(flat, flat))) + 1e-18 if flat.size else 0.0
