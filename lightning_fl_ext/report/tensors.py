"""Two sets of named arrays, compared bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.results.digest import canonical_bytes


@dataclass(frozen=True)
class TensorDifference:
    """The first tensor in which two states differ.

    Attributes:
        name: Its name in the state dict.
        others: Names of the other tensors that differ.
        shapes: Dtype and shape on each side; None where the tensor is missing.
        differing: Number of elements whose bits differ; 0 if the shapes or dtypes already do.
        elements: Number of elements.
        index: Place of the first element that differs.
        values: The two values there, as text.
        largest: Largest absolute difference, of the finite ones; None for what is not a number.
    """

    name: str
    others: tuple[str, ...]
    shapes: tuple[str | None, str | None]
    differing: int = 0
    elements: int = 0
    index: tuple[int, ...] = ()
    values: tuple[str, str] = ("", "")
    largest: float | None = None


def first_difference(left: Arrays, right: Arrays) -> TensorDifference | None:
    """Find the first tensor, in state-dict order, whose bits differ.

    Args:
        left: Named arrays.
        right: The same of the other side.

    Returns:
        None if all are equal to the bit.

    Example:
        >>> found = first_difference({"w": np.array([1.0, 2.0])}, {"w": np.array([1.0, 2.5])})
        >>> found.name, found.index, found.values, found.largest
        ('w', (1,), ('2.0', '2.5'), 0.5)
    """
    names = [*left, *(name for name in right if name not in left)]
    differing = [name for name in names if not _equal(left.get(name), right.get(name))]
    if not differing:
        return None
    name, *others = differing
    return _describe(name, tuple(others), left.get(name), right.get(name))


def _equal(mine: NDArray[Any] | None, other: NDArray[Any] | None) -> bool:
    if mine is None or other is None or mine.dtype != other.dtype or mine.shape != other.shape:
        return False
    return canonical_bytes(mine) == canonical_bytes(other)


def _describe(
    name: str, others: tuple[str, ...], mine: NDArray[Any] | None, other: NDArray[Any] | None
) -> TensorDifference:
    shapes = _shape(mine), _shape(other)
    if mine is None or other is None or shapes[0] != shapes[1]:
        return TensorDifference(name, others, shapes)
    size = mine.dtype.itemsize
    rows = [np.frombuffer(canonical_bytes(a), dtype=np.uint8).reshape(-1, size) for a in (mine, other)]
    differs = (rows[0] != rows[1]).any(axis=1)
    index = tuple(int(i) for i in np.unravel_index(int(differs.argmax()), mine.shape))
    return TensorDifference(
        name,
        others,
        shapes,
        differing=int(differs.sum()),
        elements=mine.size,
        index=index,
        values=(str(mine[index]), str(other[index])),
        largest=_largest(mine, other),
    )


def _shape(array: NDArray[Any] | None) -> str | None:
    return None if array is None else f"{array.dtype.name}{list(array.shape)}"


def _largest(mine: NDArray[Any], other: NDArray[Any]) -> float | None:
    if mine.dtype.kind in "bSU" or mine.dtype.kind == "c":
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(mine.astype(np.float64) - other.astype(np.float64))
    finite = gaps[np.isfinite(gaps)]
    return float(finite.max()) if finite.size else None
