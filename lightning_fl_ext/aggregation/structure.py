"""What an update must look like: the names, shapes and dtypes of the global model.

The server screens updates before they come here and names the client; this is the last line of defence,
for what would otherwise be broadcast, cast or left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate

Arrays = Mapping[str, NDArray[Any]]

MAX_WEIGHT = 2**26
"""Largest weight of one update: its product with half a float64's significand is exact in float64."""

_NARROW = (
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
)
FLOATS = frozenset(np.dtype(t) for t in (*_NARROW, np.float32, np.float64))
PARTS: dict[np.dtype[Any], np.dtype[Any]] = {
    np.dtype(np.complex64): np.dtype(np.float32),
    np.dtype(np.complex128): np.dtype(np.float64),
}
"""Complex dtypes, and the dtype of their real and imaginary parts."""
INTEGERS = frozenset(np.dtype(code) for code in np.typecodes["AllInteger"]) | {np.dtype(np.bool_)}


class Entry(NamedTuple):
    """Shape and dtype of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def structure_of(like: Arrays) -> dict[str, Entry]:
    """Read the structure of the global model, in its order.

    Raises:
        TypeError: If it is no mapping of names to numpy arrays, or an array has a dtype whose mean is not
            defined here (strings, objects, dates, extended precision, foreign byte order).
    """
    _check_mapping("`like`", like, TypeError)
    for name, array in like.items():
        if not isinstance(array, np.ndarray | np.generic):
            raise TypeError(f"`like`, {_not_numpy(name, array)}")
    structure = {name: Entry(array.shape, array.dtype) for name, array in like.items()}
    for name, (_, dtype) in structure.items():
        if dtype not in FLOATS and dtype not in PARTS and dtype not in INTEGERS:
            raise TypeError(
                f"`like`, array `{name}`: expected bool, an integer, float16, float32, float64, bfloat16,"
                f" float8 or complex, in native byte order, got {dtype!r}. Convert it, or leave it out"
            )
    return structure


def check_update(where: str, arrays: Arrays, weight: int, structure: Mapping[str, Entry]) -> None:
    """Check that an update has this structure and a usable weight.

    Args:
        where: What messages call the update.
        arrays: Its arrays, in any order.
        weight: Its weight.
        structure: What is expected.

    Raises:
        InvalidUpdate: If a name is missing or not expected, a value is no numpy array, a shape or dtype
            differs, or the weight is not a positive whole number.
        AggregationOverflow: If the weight is over `MAX_WEIGHT`.
    """
    _check_mapping(where, arrays, InvalidUpdate)
    if arrays.keys() != structure.keys():
        missing = [name for name in structure if name not in arrays]
        extra = [name for name in arrays if name not in structure]
        raise InvalidUpdate(
            f"{where}: expected the global model's arrays, got {len(missing)} missing {missing[:5]} and"
            f" {len(extra)} unknown {extra[:5]}. Send the state dict that was received, under the same names"
        )
    for name, (shape, dtype) in structure.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray | np.generic):
            raise InvalidUpdate(f"{where}, {_not_numpy(name, array)}")
        if (array.shape, array.dtype) != (shape, dtype):
            raise InvalidUpdate(
                f"{where}, array `{name}`: expected shape {shape} and dtype {dtype}, got {array.shape} and"
                f" {array.dtype}. Nothing is broadcast or cast: send what the global model has"
            )
    if isinstance(weight, bool) or not isinstance(weight, int | np.integer) or weight < 1:
        raise InvalidUpdate(
            f"{where}: expected `weight` to be a positive whole number (an example count), got {weight!r}"
        )
    if weight > MAX_WEIGHT:
        raise AggregationOverflow(
            f"{where}: expected `weight` of at most {MAX_WEIGHT}, got {weight}: products would no longer be"
            " exact. Count in larger units, on every client"
        )


def _check_mapping(where: str, arrays: object, error: type[Exception]) -> None:
    if not isinstance(arrays, Mapping):
        raise error(
            f"{where}: expected a mapping of names to numpy arrays, got {type(arrays).__name__}. Name a"
            " list's arrays by `dict(zip(names, arrays))`"
        )


def _not_numpy(name: str, array: object) -> str:
    return (
        f"array `{name}`: expected a numpy array, got {type(array).__name__}. `lightning_fl_ext.wire` has"
        " `to_numpy` for tensors and `from_record` for Flower's records"
    )
