"""The exact mean of updates that come one by one: a few wait, so that a pass over the sums takes several.

A pass reads and writes eight bytes for each number, and an update of float32 has four: for large models the
passes are most of the work, and what waits is most of the memory. So a large model is cut into parts whose
turns follow each other. Each part takes four updates a pass, and while one has four waiting, the next has
three, then two, then one: two and a half updates wait instead of four.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from lightning_fl_ext.aggregation.exact import ExactMean
from lightning_fl_ext.aggregation.kernels import UPDATES_PER_PASS
from lightning_fl_ext.aggregation.structure import Arrays, check_update, structure_of

LARGE = 2**23
"""Bytes of a model from which it is cut into parts."""


class StreamedMean:
    """An `ExactMean` that holds on to updates until there are enough for a pass: the same bits, sooner.

    Args:
        like: The global model's arrays, as for `ExactMean`.

    Raises:
        TypeError: As for `ExactMean`.

    Example:
        >>> import numpy as np
        >>> mean = StreamedMean({"w": np.zeros(1)})
        >>> mean.add({"w": np.array([0.5])}, 1)
        >>> mean.add({"w": np.array([2.0])}, 2)
        >>> mean.num_updates, mean.result()
        (2, {'w': array([1.5])})
    """

    def __init__(self, like: Arrays) -> None:
        self._structure = structure_of(like)
        self._parts = _cut(like)
        self._means = [ExactMean({name: like[name] for name in part}) for part in self._parts]
        self._waiting: list[list[tuple[Arrays, int]]] = [[] for _ in self._parts]
        self.num_updates = 0
        """Updates so far."""

    def add(self, arrays: Arrays, weight: int) -> None:
        """Take an update, whose arrays are kept for a while and must not change meanwhile.

        Raises:
            InvalidUpdate: As `ExactMean.add_many`, of this update or of one that waited. The mean is then
                of no more use.
            AggregationOverflow: The same.
        """
        cut = len(self._parts) > 1  # otherwise the one part looks for what is missing or unknown
        if cut:
            check_update(f"update {self.num_updates}", arrays, weight, self._structure)
        self.num_updates += 1
        for turn, (part, waiting) in enumerate(zip(self._parts, self._waiting, strict=True)):
            waiting.append(({name: arrays[name] for name in part} if cut else arrays, weight))
            if len(waiting) >= UPDATES_PER_PASS - 1 and (self.num_updates - turn) % UPDATES_PER_PASS == 0:
                self._fold(turn)

    def result(self, out: Mapping[str, NDArray[Any]] | None = None) -> dict[str, NDArray[Any]]:
        """Give the mean of what was added so far; see `ExactMean.result`, also for ``out`` and errors."""
        means: dict[str, NDArray[Any]] = {}
        for turn, mean in enumerate(self._means):
            self._fold(turn)
            part = self._parts[turn]
            means |= mean.result(out if out is None else {name: out[name] for name in part})
        return {name: means[name] for name in self._structure}

    def wide_result(self, wide: Collection[str]) -> dict[str, NDArray[Any]]:
        """Give the mean with some arrays in float64 or complex128; see `ExactMean.wide_result`."""
        means: dict[str, NDArray[Any]] = {}
        for turn, mean in enumerate(self._means):
            self._fold(turn)
            means |= mean.wide_result(wide)
        return {name: means[name] for name in self._structure}

    def _fold(self, turn: int) -> None:
        self._means[turn].add_many(self._waiting[turn])
        self._waiting[turn].clear()


def _cut(like: Arrays) -> list[list[str]]:
    """Share the arrays of a large model out to parts, the largest first and each to the smallest part.

    The largest part comes first, since its turns come at four updates each; those of the others first come
    at five, six and three.

    Example:
        >>> import numpy as np
        >>> sizes = {"a": 2**21, "b": 2**10, "c": 2**20, "d": 2**20, "e": 2**19, "f": 2**19}
        >>> _cut({name: np.empty(size, np.float32) for name, size in sizes.items()})
        [['a'], ['c', 'b'], ['d'], ['e', 'f']]
    """
    sizes = {name: array.nbytes for name, array in like.items()}
    if sum(sizes.values()) < LARGE:
        return [list(like)]
    parts: list[list[str]] = [[] for _ in range(UPDATES_PER_PASS)]
    filled = [0] * len(parts)
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        least = filled.index(min(filled))
        parts[least].append(name)
        filled[least] += sizes[name]
    order = sorted(range(len(parts)), key=lambda i: -filled[i])
    return [parts[i] for i in order if parts[i]]
