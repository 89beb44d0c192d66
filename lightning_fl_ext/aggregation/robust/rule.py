"""`RobustRule`: a model made of updates of which some may be anything at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.structure import INTEGERS, Arrays, check_update, structure_of
from lightning_fl_ext.arguments import limit
from lightning_fl_ext.errors import LightningFLError

Array = NDArray[Any]


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
        self.write(like, updates, asked, new)
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
    def write(self, like: Arrays, updates: Sequence[Arrays], asked: int, out: Mapping[str, Array]) -> None:
        """Write the floating and complex arrays.

        Args:
            like: The global model's arrays.
            updates: As many as :meth:`least` says, of its structure, in any order.
            asked: How many clients were asked.
            out: Arrays to write to, like the global model's; integers and bools are there already.
        """

    def _at_least(self, needed: int, asked: int, why: str) -> int:
        if asked < needed:
            raise LightningFLError(f"{self!r} needs at least {needed} clients: {why}. Asked are {asked}.")
        return needed


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


def number_of(name: str, value: Any) -> float:
    """Take a number that is not negative; raise TypeError or ValueError otherwise."""
    number = limit(name, value, zero=True)
    if number is None:
        raise TypeError(f"`{name}` must be a number. Got None.")
    return number
