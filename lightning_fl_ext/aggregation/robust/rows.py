"""The updates of a round as rows of numbers: in one order, block by block, widened to float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import InvalidUpdate
from lightning_fl_ext.aggregation.rounding import rounded
from lightning_fl_ext.aggregation.structure import INTEGERS, PARTS, Arrays
from lightning_fl_ext.results import digest, pseudo_sort_scoring_function

Array = NDArray[Any]
Float64 = NDArray[np.float64]

BLOCK = 2**13
"""Numbers of a row that are looked at together: ten such rows fit a processor's cache."""


def in_order(updates: Sequence[Arrays]) -> list[Arrays]:
    """Sort updates by what they hold: by the pseudo-sort score, those of one score by digest.

    What still compares equal holds equal bytes, so its order cannot change a sum.

    Args:
        updates: Finite, of one structure, in any order.

    Example:
        >>> [u["w"].item() for u in in_order([{"w": np.array([2.0])}, {"w": np.array([1.0])}])]
        [1.0, 2.0]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scores = [float(pseudo_sort_scoring_function(("", list(u.values()), 0))) for u in updates]
    scores = [score if score == score else float("inf") for score in scores]
    shared = Counter(scores)
    keys = [
        (score, digest(update) if shared[score] > 1 else "")
        for score, update in zip(scores, updates, strict=True)
    ]
    return [updates[i] for i in sorted(range(len(updates)), key=keys.__getitem__)]


class Rows:
    """The floating entries of several updates; a complex number counts as two.

    Args:
        like: The global model's arrays.
        updates: Of its names, shapes and dtypes, in the order in which sums are to add them.
    """

    def __init__(self, like: Arrays, updates: Sequence[Arrays]) -> None:
        self._dtypes = {
            name: PARTS.get(array.dtype, array.dtype)
            for name, array in like.items()
            if array.dtype not in INTEGERS
        }
        self._rows = [{name: self._flat(update, name) for name in self._dtypes} for update in updates]

    def blocks(self) -> Iterator[tuple[str, slice, np.dtype[Any], list[Array]]]:
        """Give each block's array, its place there, the dtype, and all rows' numbers as they are."""
        for name, dtype in self._dtypes.items():
            size = self._rows[0][name].size
            for start in range(0, size, BLOCK):
                part = slice(start, min(start + BLOCK, size))
                yield name, part, dtype, [row[name][part] for row in self._rows]

    def places(self, out: Mapping[str, Array]) -> dict[str, Array]:
        """View arrays to be written to as the numbers that :meth:`blocks` tells the places of."""
        return {name: out[name].reshape(-1).view(dtype) for name, dtype in self._dtypes.items()}

    def squared_distances(self) -> Float64:
        """Give the squared distance of every two rows, by the differences of their numbers.

        Not from the rows' products, which would cancel: two rows close together and far from zero have a
        distance too.

        Raises:
            InvalidUpdate: A distance is not finite.
        """
        total = np.zeros((len(self._rows), len(self._rows)))
        with np.errstate(all="ignore"):
            for wide in self._wide_blocks():
                difference = np.empty(wide.shape[1])
                for i, row in enumerate(wide):
                    for j in range(i):
                        np.subtract(row, wide[j], out=difference)
                        total[i, j] += np.dot(difference, difference)
        return _finite(total + total.T)

    def squared_distances_to(self, coefficients: Sequence[float] | Float64) -> Float64:
        """Give the squared distance of every row to the sum of all rows, each times its coefficient.

        Raises:
            InvalidUpdate: A distance is not finite.
        """
        total = np.zeros(len(self._rows))
        with np.errstate(all="ignore"):
            for wide in self._wide_blocks():
                wide -= _combined(wide, coefficients)
                for i, row in enumerate(wide):
                    total[i] += np.dot(row, row)
        return _finite(total)

    def combine(self, coefficients: Sequence[float] | Float64, out: Mapping[str, Array]) -> None:
        """Write the sum of all rows, each times its coefficient, rounded to the dtypes of ``out``, to it."""
        places = self.places(out)
        blocks = zip(self.blocks(), self._wide_blocks(), strict=True)
        for (name, part, dtype, _), wide in blocks:
            places[name][part] = rounded(_combined(wide, coefficients), dtype)

    def _wide_blocks(self) -> Iterator[Float64]:
        room = np.empty((len(self._rows), BLOCK))
        for _, _, dtype, rows in self.blocks():
            wide = room[:, : rows[0].size]
            for i, row in enumerate(rows):
                wide[i] = row if dtype.itemsize >= 4 else row.astype(np.float32)
            yield wide

    def _flat(self, update: Arrays, name: str) -> Array:
        flat: Array = np.ascontiguousarray(update[name]).reshape(-1).view(self._dtypes[name])
        return flat


def _combined(wide: Float64, coefficients: Sequence[float] | Float64) -> Float64:
    """Add up rows times coefficients one after the other: BLAS might add in another order elsewhere."""
    total: Float64 = wide[0] * coefficients[0]
    term = np.empty_like(total)
    for row, coefficient in zip(wide[1:], coefficients[1:], strict=True):
        np.multiply(row, coefficient, out=term)
        total += term
    return total


def _finite(distances: Array) -> Float64:
    if not np.isfinite(distances).all():
        raise InvalidUpdate(
            "expected updates at finite distances, got values that are not finite or too large to be squared."
            " Leave out updates that hold such"
        )
    return distances
