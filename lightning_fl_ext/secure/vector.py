"""What is inside the sum: the arrays times the examples, the examples, and other whole numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_fl_ext.aggregation import AggregationOverflow, ExactMean
from lightning_fl_ext.aggregation.structure import MAX_WEIGHT, Arrays
from lightning_fl_ext.aggregation.words import (
    from_words,
    number_of_words,
    numbers_from_words,
    to_words,
    words_of_numbers,
)
from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.masks import Words

_TAIL = 2
"""Words after the arrays: the sum of the weights, and of the clients."""


class Total(NamedTuple):
    """What the sum of all clients' vectors says.

    Attributes:
        mean: Of the arrays.
        numbers: The sums of the other numbers.
    """

    mean: ExactMean
    numbers: list[int]


NOTHING: tuple[Words, Words] = words_of_numbers([])


def encode(
    mean: ExactMean, wide: bool, numbers: tuple[Words, Words] = NOTHING, out: Words | None = None
) -> Words:
    """Make a client's vector.

    Args:
        mean: Of its arrays alone, weighted.
        wide: Whether each number of the arrays has a second word; the others always have.
        numbers: What else is summed, as `words_of_numbers` gives it; of magnitudes that, over all clients,
            stay under 2^97.
        out: Of `length`, to be written to; by default a new array.
    """
    tail = np.array([mean.total_weight, 1], np.uint64)
    return np.concatenate([*to_words(mean, wide), tail, *numbers], out=out)


def length(like: Arrays, wide: bool, numbers: int = 0) -> int:
    """Give the number of words in a vector with this many other numbers."""
    return number_of_words(like, wide) + _TAIL + 2 * numbers


def decode(like: Arrays, words: Words, wide: bool, clients: int) -> Total:
    """Read the sum of the vectors of some clients, having checked that it can be such a sum.

    Raises:
        SecureAggregationError: It cannot.
    """
    size = number_of_words(like, wide)
    weight, number = (int(word) for word in words[size : size + _TAIL])
    if number != clients or not clients <= weight <= clients * MAX_WEIGHT:
        raise SecureAggregationError(
            f"the unmasked sum does not say that it is of {clients} clients with a plausible count of"
            " examples: it is no sum of updates"
        )
    try:
        mean = from_words(like, words[:size], wide, weight, clients)
    except AggregationOverflow:
        raise SecureAggregationError("the unmasked sum is out of bounds: it is no sum of updates") from None
    return Total(mean, numbers_from_words(*np.split(words[size + _TAIL :], 2)))
