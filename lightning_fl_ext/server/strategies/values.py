"""Small helpers of strategies: numbers as arguments, and dtypes to compute in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_float(array: NDArray[Any]) -> bool:
    """Tell whether an array holds real floating numbers."""
    return array.dtype.kind not in "biuc"


def wide(array: NDArray[Any]) -> NDArray[np.float64]:
    """Give an array as float64, which holds every narrower float exactly."""
    return array.astype(np.float64)


def at_least_single(array: NDArray[Any]) -> np.dtype[Any]:
    """Give the dtype in which to hold sums for an array: its own, or float32 if that is narrower."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def positive(name: str, value: float, zero: bool = False) -> float:
    """Take a positive number.

    Raises:
        ValueError: It is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 0 if zero else value > 0) or not value < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number {'of at least' if zero else 'above'} 0. Got {value!r}."
        )
    return float(value)
