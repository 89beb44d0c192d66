"""Rules that weigh whole updates by their distances: Krum, the geometric median, and centred clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.robust.by_coordinate import CoordinateMedian
from lightning_fl_ext.aggregation.robust.rows import Rows, in_order
from lightning_fl_ext.aggregation.robust.rule import RobustRule, number_of
from lightning_fl_ext.aggregation.structure import Arrays
from lightning_fl_ext.arguments import whole_number
from lightning_fl_ext.results import digest

Array = NDArray[Any]

TOLERANCE = 1e-12
"""Relative decrease of the sum of distances at which a geometric median is near enough."""


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

    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """See :meth:`RobustRule.write`."""
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
        if not number_of("smoothing", self.smoothing) > 0:
            raise ValueError(f"`smoothing` must be positive. Got {self.smoothing!r}.")

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """See :meth:`RobustRule.write`."""
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
        if not 0 < number_of("radius", self.radius) < math.inf:
            raise ValueError(f"`radius` must be positive and finite. Got {self.radius!r}.")

    def least(self, asked: int) -> int:
        """Three: of two, none can be told to be the odd one."""
        return self._at_least(3, asked, "of two, none can be told to be the bad one")

    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """See :meth:`RobustRule.write`."""
        number = len(updates)
        rows = Rows(like, [like, *in_order(updates)])
        centre = np.array([1.0] + [0.0] * number)
        for _ in range(self.iterations):
            distances = np.sqrt(rows.squared_distances_to(centre)[1:])
            shares = np.minimum(1, self.radius / np.maximum(distances, self.radius)) / number
            centre *= 1 - math.fsum(shares)
            centre[1:] += shares
        rows.combine(centre, out)
