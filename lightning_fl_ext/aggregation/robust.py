"""Robust rules: models made of updates of which some may be anything at all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.errors import InvalidUpdate
from lightning_fl_ext.aggregation.rounding import midpoint, rounded
from lightning_fl_ext.aggregation.rows import BLOCK, Rows, in_order
from lightning_fl_ext.aggregation.sorting_network import sorted_rows
from lightning_fl_ext.aggregation.structure import INTEGERS, Arrays, check_update, structure_of
from lightning_fl_ext.arguments import limit, whole_number
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import digest

Array = NDArray[Any]

TOLERANCE = 1e-12
"""Relative decrease of the sum of distances at which a geometric median is near enough."""


class RobustRule(ABC):
    """A function from a round's updates to one model, of which a few bad updates cannot make what they like.

    The updates are what counts, not their order and not their example counts, which are the clients' own
    word: every update has one vote. Sums are in float64, in an order that the updates alone decide, and
    rounded once, to the global model's dtypes. Integer arrays get the median of each place, rounded half to
    even; bool arrays the majority, ties False.
    """

    def __call__(self, like: Arrays, updates: Iterable[Arrays], asked: int | None = None) -> dict[str, Array]:
        """Aggregate updates.

        Args:
            like: The global model's arrays in state-dict order.
            updates: Arrays under the same names, of the same shapes and dtypes, finite.
            asked: How many clients were asked, of whom some may not have answered. Default: as many as there
                are updates.

        Returns:
            A new model, in the order and dtypes of ``like``.

        Raises:
            InvalidUpdate: An update is not as said.
            LightningFLError: There are fewer than :meth:`least` updates.
            TypeError: ``like`` holds an array that no such rule is defined for.
        """
        structure, updates = structure_of(like), list(updates)
        if not updates:
            raise LightningFLError("nothing to aggregate: expected at least one update.")
        for i, update in enumerate(updates):
            check_update(f"update {i}", update, 1, structure)
        asked = len(updates) if asked is None else asked
        if len(updates) < (least := self.least(asked)):
            raise LightningFLError(
                f"{self!r}: expected at least {least} updates of {asked} clients asked, got {len(updates)}."
            )
        new = {name: np.empty(entry.shape, entry.dtype) for name, entry in structure.items()}
        for name, array in new.items():
            if array.dtype in INTEGERS:
                array[...] = middle_integer(np.stack([update[name] for update in updates]))
        self._write(like, updates, asked, new)
        return new

    @abstractmethod
    def least(self, asked: int) -> int:
        """Give how many of the clients asked must have sent an update that counts.

        Args:
            asked: How many clients are asked.

        Raises:
            LightningFLError: The rule makes no sense for so few.
        """

    @abstractmethod
    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """Write the floating and complex arrays."""

    def _at_least(self, needed: int, asked: int, why: str) -> int:
        if asked < needed:
            raise LightningFLError(f"{self!r} needs at least {needed} clients: {why}. Asked are {asked}.")
        return needed


@dataclass(frozen=True)
class CoordinateMedian(RobustRule):
    """The median of each number (Yin et al., ICML 2018, arXiv:1803.01498, definition 1).

    Exact: of an even number of updates the mean of the two in the middle, rounded once. Of a complex number,
    the medians of both parts. Holds while less than half of the updates are bad.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> CoordinateMedian()(like, [{"w": np.array([w])} for w in (1.0, 2.0, 900.0)])
        {'w': array([2.])}
    """

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        rows = Rows(like, updates)
        places, low, high = rows.places(out), (len(updates) - 1) // 2, len(updates) // 2
        for name, part, dtype, ranked in _ranked(rows, low, high + 1):
            # Of an odd number the one in the middle is the mean of itself and itself.
            places[name][part] = midpoint(ranked[0], ranked[-1], dtype)


@dataclass(frozen=True)
class TrimmedMean(RobustRule):
    """The mean of each number without the largest and the smallest (Yin et al. 2018, definition 2).

    At either end ``fraction`` of the clients **asked** is left out, rounded down: that many may be bad, and a
    client that drops out makes it no fewer. The rest is summed from the smallest to the largest.

    Args:
        fraction: Of the clients asked, above 0 and below one half.

    Raises:
        ValueError: It is not.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> TrimmedMean(0.25)(like, [{"w": np.array([w])} for w in (1.0, 2.0, 3.0, 900.0)])
        {'w': array([2.5])}
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < _number("fraction", self.fraction) < 0.5:
            raise ValueError(f"`fraction` must be above 0 and below one half. Got {self.fraction!r}.")

    def least(self, asked: int) -> int:
        """One more than are left out at both ends together."""
        return 2 * self._trimmed(asked) + 1

    def _trimmed(self, asked: int) -> int:
        trimmed = math.floor(self.fraction * asked + 1e-9)
        if not trimmed:
            raise LightningFLError(
                f"{self!r} trims nobody of {asked} clients asked, so it is the mean of all. Ask at least"
                f" {math.ceil(1 / self.fraction - 1e-9)}, or give a larger `fraction`."
            )
        return trimmed

    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        rows, trimmed = Rows(like, updates), self._trimmed(asked)
        places, kept = rows.places(out), len(updates) - 2 * trimmed
        for name, part, dtype, ranked in _ranked(rows, trimmed, trimmed + kept):
            total = ranked[0].astype(np.float64)
            for row in ranked[1:]:
                total += row
            places[name][part] = rounded(total / kept, dtype)


@dataclass(frozen=True)
class KrumSelection(RobustRule):
    """Krum and Multi-Krum: updates with near neighbours (Blanchard et al., NeurIPS 2017, sections 4, 5).

    Of ``n`` updates each is scored by the sum of its squared distances to the ``n - malicious - 2`` nearest
    others, over all floating entries. The ``select`` with the least scores are averaged; of equal scores, the
    smaller digest comes first.

    Args:
        malicious: How many updates may be bad; at least ``2 * malicious + 3`` are needed.
        select: How many are averaged: 1 is Krum, which gives one update as it is.

    Raises:
        TypeError: One is not a whole number.
        ValueError: One is less than 1.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> KrumSelection(1, select=2)(like, [{"w": np.array([w])} for w in (1.0, 2.0, 3.0, 4.5, 900.0)])
        {'w': array([2.5])}
    """

    malicious: int
    select: int = 1

    def __post_init__(self) -> None:
        whole_number("malicious", self.malicious, 1)
        whole_number("select", self.select, 1)

    def least(self, asked: int) -> int:
        """``2 * malicious + 3``, and enough to select from without those that may be bad."""
        self._at_least(
            2 * self.malicious + 3,
            asked,
            f"with {self.malicious} bad ones of fewer, they could be the majority",
        )
        why = f"of fewer, {self.select} cannot be selected without {self.malicious}"
        return max(self._at_least(self.malicious + self.select, asked, why), 2 * self.malicious + 3)

    def scores(self, like: Arrays, updates: Sequence[Arrays]) -> NDArray[np.float64]:
        """Score updates, in their order: the less, the nearer its neighbours."""
        squared = Rows(like, updates).squared_distances()
        nearest = np.sort(squared, axis=1)[:, 1 : len(updates) - self.malicious - 1]  # without itself
        total = np.zeros(len(updates))
        for column in nearest.T:
            total += column
        return total

    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        scores = self.scores(like, updates)
        last = np.sort(scores)[self.select - 1]
        keys = [(score, digest(u) if score == last else "") for score, u in zip(scores, updates, strict=True)]
        chosen = sorted(range(len(updates)), key=keys.__getitem__)[: self.select]
        rows = Rows(like, in_order([updates[i] for i in chosen]))
        rows.combine([1.0 / self.select] * self.select, out)


@dataclass(frozen=True)
class GeometricMedian(RobustRule):
    """RFA: nearly the point with the least sum of distances to all updates (Pillutla et al. 2022, section 3).

    Found by the smoothed Weiszfeld algorithm (arXiv:1912.13445, algorithm 2): as a weighted mean of the
    updates, whose weights fall with the distance. It starts from the coordinate median instead of the mean,
    since what is very far away takes many iterations to lose its weight. Holds while less than half are bad.

    Args:
        iterations: Of Weiszfeld's algorithm at most; each reads all updates once. It stops where the sum of
            distances no longer falls.
        smoothing: The least distance that counts, so that a point on top of an update has a weight.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive.

    Example:
        >>> like = {"w": np.zeros(2)}
        >>> corners = [np.array(w) for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [900.0, 900.0])]
        >>> GeometricMedian()(like, [{"w": w} for w in corners])["w"].round(3)
        array([1., 1.])
    """

    iterations: int = 32
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        whole_number("iterations", self.iterations, 1)
        if not _number("smoothing", self.smoothing) > 0:
            raise ValueError(f"`smoothing` must be positive. Got {self.smoothing!r}.")

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        start = CoordinateMedian()(like, updates)
        rows = Rows(like, [start, *in_order(updates)])
        centre, before = np.array([1.0] + [0.0] * len(updates)), math.inf
        for _ in range(self.iterations):
            distances = np.sqrt(rows.squared_distances_to(centre)[1:])
            total = math.fsum(distances)
            if not total < before * (1 - TOLERANCE):
                break
            before = total
            closeness = 1 / np.maximum(distances, self.smoothing)
            centre = np.append(0.0, closeness / math.fsum(closeness))
        rows.combine(centre, out)


@dataclass(frozen=True)
class CentredClipping(RobustRule):
    """The mean of updates that are clipped around a centre (Karimireddy et al., ICML 2021, section 4).

    The centre is the global model at first, and then what the iteration before gave (arXiv:2012.10333,
    algorithm 2): ``v + mean((w - v) * min(1, radius / norm(w - v)))``. So a bad update moves the model by
    ``iterations * radius / n`` at most. Integers and bools have no part in the norms.

    Args:
        radius: About the norm of an honest update: the weights of a fit minus the global ones.
        iterations: How often to clip and average; each reads all updates once or twice.

    Raises:
        TypeError: One is no number.
        ValueError: One is not positive.

    Example:
        >>> like = {"w": np.zeros(1)}
        >>> CentredClipping(1.0, iterations=1)(like, [{"w": np.array([w])} for w in (0.5, 0.5, -0.75, 900.0)])
        {'w': array([0.3125])}
    """

    radius: float
    iterations: int = 3

    def __post_init__(self) -> None:
        whole_number("iterations", self.iterations, 1)
        if not 0 < _number("radius", self.radius) < math.inf:
            raise ValueError(f"`radius` must be positive and finite. Got {self.radius!r}.")

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def _write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        number = len(updates)
        rows = Rows(like, [like, *in_order(updates)])
        centre = np.array([1.0] + [0.0] * number)
        for _ in range(self.iterations):
            distances = np.sqrt(rows.squared_distances_to(centre)[1:])
            shares = np.minimum(1, self.radius / np.maximum(distances, self.radius)) / number
            centre *= 1 - math.fsum(shares)
            centre[1:] += shares
        rows.combine(centre, out)


def middle_integer(stack: Array) -> Array:
    """Give the median of each place, rounded half to even; of bools the majority, ties False.

    Args:
        stack: Integers or bools, shape (updates, ...).

    Example:
        >>> middle_integer(np.array([[1, 2**62], [4, 2**62 + 2], [0, 0], [9, 2**63 - 1]])).tolist()
        [2, 4611686018427387905]
    """
    number = len(stack)
    if stack.dtype == np.bool_:
        return np.asarray(2 * stack.sum(axis=0) > number)
    ordered = np.sort(stack, axis=0)
    low, high = ordered[(number - 1) // 2], ordered[number // 2]
    floor = (low & high) + ((low ^ high) >> 1)  # of half the sum, which might not fit
    middle: Array = floor + (floor & (low ^ high) & 1)
    return middle


def _ranked(rows: Rows, start: int, stop: int) -> Iterable[tuple[str, slice, np.dtype[Any], list[Array]]]:
    """Sort each block's numbers, and give the ranks from ``start`` to ``stop``."""
    room: dict[np.dtype[Any], list[Array]] = {}
    for name, part, dtype, given in rows.blocks():
        kind = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        wide = []
        for i, row in enumerate(given):
            here = room.setdefault(kind, [np.empty(BLOCK, kind) for _ in given])[i][: row.size]
            # Adding zero makes a zero of a negative one, which would stay where its order put it.
            np.add(row if row.dtype == kind else row.astype(kind), kind.type(0), out=here)
            wide.append(here)
        ranked = sorted_rows(wide, start, stop)
        if not all(np.isfinite(row).all() for row in (ranked[0], ranked[-1])):
            raise InvalidUpdate(
                f"array `{name}`: expected finite values, got NaN or inf. Leave such updates out"
            )
        yield name, part, dtype, ranked


def _number(name: str, value: Any) -> float:
    number = limit(name, value, zero=True)
    if number is None:
        raise TypeError(f"`{name}` must be a number. Got None.")
    return number
