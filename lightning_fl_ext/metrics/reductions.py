"""The arithmetic of merging: sums and means whose value does not depend on the order of the clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT64_MAX = np.iinfo(np.int64).max


def exact_sum(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Element-wise sum, rounded once.

    Integers are added as integers. Floats are added by `math.fsum` (Shewchuk, "Adaptive Precision
    Floating-Point Arithmetic and Fast Robust Geometric Predicates", 1997), which gives the float64 nearest
    to the true sum, whatever the order.

    Args:
        arrays: At least one array; all of one shape and dtype (bool, integer or float).

    Returns:
        Sum in the dtype of the arrays; bool gives int64 and float16 gives float32.

    Raises:
        OverflowError: If the sum does not fit int64 or float64.

    Example:
        >>> exact_sum([np.float32([1e8]), np.float32([1.0]), np.float32([-1e8])])
        array([1.], dtype=float32)
    """
    stacked = np.stack(arrays)
    if stacked.dtype.kind != "f":
        # Python's integers bound the sum without overflow: |sum| <= n * max |x|.
        wide = stacked.astype(np.int64)
        if wide.size and len(arrays) * max(int(wide.max()), -int(wide.min())) > _INT64_MAX:
            raise OverflowError("the sum of the clients' counts may not fit 64 bits")
        total = wide.sum(axis=0)
        return total if stacked.dtype.kind == "b" else _narrow(total, stacked.dtype)
    columns = stacked.astype(np.float64).reshape(len(arrays), -1).T.tolist()
    summed = np.array([math.fsum(column) for column in columns]).reshape(stacked.shape[1:])
    with np.errstate(over="ignore"):
        return summed.astype(np.result_type(stacked.dtype, np.float32))


def weighted_mean(arrays: Sequence[NDArray[Any]], weights: Sequence[int]) -> NDArray[Any]:
    """Element-wise weighted mean with `exact_sum`.

    Args:
        arrays: At least one array; all of one shape and dtype.
        weights: One positive count for each array, below 2^53.

    Returns:
        Mean in the dtype of the arrays; integers, bool and float16 give float32.

    Raises:
        OverflowError: If a sum does not fit float64.

    Example:
        >>> weighted_mean([np.array(1.0), np.array(4.0)], [2, 1])
        array(2.)
    """
    dtype = arrays[0].dtype
    with np.errstate(over="ignore"):
        total = exact_sum(
            [array.astype(np.float64) * weight for array, weight in zip(arrays, weights, strict=True)]
        )
        mean = np.asarray(total / float(sum(weights)))
        return mean.astype(np.result_type(dtype, np.float32) if dtype.kind == "f" else np.float32)


def _narrow(total: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`total` in `dtype` if it fits, else as it is (int64)."""
    limits = np.iinfo(dtype)
    fits = not total.size or (total.min() >= limits.min and total.max() <= limits.max)
    return total.astype(dtype) if fits else total
