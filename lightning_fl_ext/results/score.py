"""The pseudo-sort score: a cheap number that tells clients' results apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results.dtypes import EXTENDED_FLOATS


def select_zeroeth_element(array: NDArray[Any]) -> Any:
    """Select the element at index 0 of every dimension.

    Args:
        array: Any shape and dtype, with at least one element. A 0-d array gives its only element.

    Returns:
        The element, as a numpy scalar of the array's dtype.

    Raises:
        IndexError: The array has size 0.

    Example:
        >>> import numpy as np
        >>> int(select_zeroeth_element(np.arange(6).reshape(2, 3) + 5))
        5
    """
    return array[(0,) * array.ndim]


def pseudo_sort_scoring_function(
    client_result: tuple[Any, Sequence[NDArray[Any]], int],
) -> float | np.floating[Any]:
    """Score one client's result: the zeroeth elements of its floating arrays, summed, plus its count.

    Only what sits at index 0 is read, so the score costs microseconds for a model of any size. Arrays that
    are not floating (integers, booleans, strings) and arrays of size 0 contribute nothing. The sum is
    ``np.sum`` over the elements as they are, so it follows numpy's promotion: all float32 gives a float32
    score. bfloat16 and float8 elements (``ml_dtypes``) count as float32. NaN and infinities give a NaN or
    infinite score.

    Different results can share a score; :func:`decode_and_pseudo_sort_results` and :func:`order_results`
    break such ties by digest.

    Args:
        client_result: ``(client, arrays, sample_count)``. The client is not read.

    Returns:
        The score, as the numpy scalar (or Python float) that the sum gives.

    Example:
        >>> import numpy as np
        >>> rng = np.random.RandomState(42)
        >>> arrays = [rng.rand(10, 10), rng.rand(10, 10), rng.rand(5, 5), rng.rand(5, 5)]
        >>> round(float(pseudo_sort_scoring_function(("client", arrays, 13))), 5)
        14.29199
        >>> odd = [*arrays, np.array(["Cat", "Dog"]), np.array([True, False])]
        >>> round(float(pseudo_sort_scoring_function(("client", odd, 13))), 5)
        14.29199
    """
    _, arrays, sample_count = client_result
    elements = []
    for array in arrays:
        if array.size == 0:
            continue
        if np.issubdtype(array.dtype, np.floating):
            elements.append(select_zeroeth_element(array))
        elif array.dtype.name in EXTENDED_FLOATS:
            elements.append(np.float32(select_zeroeth_element(array)))
    with np.errstate(over="ignore", invalid="ignore"):
        score: float | np.floating[Any] = np.sum(elements) + sample_count
    return score
