"""Small helpers of strategies: numbers as arguments, and dtypes to compute in."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.rounding import rounded

log = logging.getLogger(__name__)


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


def narrowed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Bring what was computed to a model's dtype, rounded once; what is too large for it is not finite.

    Example:
        >>> import ml_dtypes
        >>> narrowed(np.array(1 + 2.0**-8 + 2.0**-40), np.dtype(ml_dtypes.bfloat16)).astype(float).item()
        1.0078125
    """
    if array.dtype == np.float64 and dtype.kind not in "biuc":
        return rounded(array, dtype)
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def largest_of(array: NDArray[Any]) -> float:
    """Give the largest magnitude among real numbers; 0 if there are none."""
    return float(np.abs(array).max(initial=0))


def lead_too_far(strategy: str, server_round: int, largest: float, limit: float, fits: bool) -> bool:
    """Tell, and say, whether weights are so large that honest clients could not answer them.

    Args:
        strategy: What made them, for the message.
        server_round: The current round.
        largest: Their largest magnitude, before they were brought to the model's dtypes. What is not finite
            there is another fault, and is let pass here.
        limit: The magnitude from which screening would leave out such an answer.
        fits: Whether they are finite in the model's dtypes.
    """
    if not largest < math.inf or (fits and largest < limit):
        return False
    log.warning(
        "round %d is void: %s makes weights of up to %.3g, too large for clients to send back."
        " `max_update_norm` leaves out the updates that lead there",
        *(server_round, strategy, largest),
    )
    return True
