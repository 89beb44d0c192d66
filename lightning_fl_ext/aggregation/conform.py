"""Bringing what a strategy computed back to the global model's dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def conform(arrays: Mapping[str, NDArray[Any]], like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Cast arrays to the dtypes of a model, in its order.

    Strategies that average everything in floating point give fractional counters and masks. Integers are
    rounded half to even, and stop at the ends of their range; a bool is True where the mean is above one
    half. A float that is too large for a narrower dtype becomes infinite, and a NaN stays one, or becomes 0
    in an integer: look for them before or after.

    Args:
        arrays: With the names and shapes of ``like``.
        like: The global model.

    Returns:
        Arrays with the dtypes of ``like``.

    Example:
        >>> model = {"n": np.array(0), "m": np.zeros(2, dtype=bool)}
        >>> conform({"n": np.array(2.5), "m": np.array([0.5, 0.7])}, model)
        {'n': array(2), 'm': array([False,  True])}
    """
    return {name: _cast(arrays[name], array.dtype) for name, array in like.items()}


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if array.dtype == dtype:
        return array
    if dtype == np.bool_:
        return np.asarray(array > 0.5)
    if dtype.kind in "iu" and array.dtype.kind == "f":
        return _rounded(array, dtype)
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _rounded(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    whole, ends = np.nan_to_num(np.rint(array)), np.iinfo(dtype)
    low, high = whole <= float(ends.min), whole >= float(ends.max)
    inside = np.where(low | high, 0, whole).astype(dtype)
    return np.where(low, dtype.type(ends.min), np.where(high, dtype.type(ends.max), inside))
