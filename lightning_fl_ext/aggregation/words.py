"""The sums of an exact mean as words: vectors of uint64 that add up modulo 2^64, and can be masked.

Sums of integers modulo 2^64 form a group. The words of several means, added, are the words of the merged
mean, whatever was added to them on the way and taken off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.arithmetic import LIMIT, SHIFT
from lightning_fl_ext.aggregation.exact import ExactMean
from lightning_fl_ext.aggregation.float_sums import ONE_WORD
from lightning_fl_ext.aggregation.integer_sum import IntegerSum
from lightning_fl_ext.aggregation.structure import Arrays

Words = NDArray[np.uint64]

_MASK = 2**64 - 1


def number_of_words(like: Arrays, wide: bool) -> int:
    """Give the length of what `to_words` gives.

    Example:
        >>> number_of_words({"w": np.zeros(5), "z": np.zeros(1, np.complex64)}, wide=False)
        7
    """
    numbers = sum(array.size * (2 if array.dtype.kind == "c" else 1) for array in like.values())
    return (2 if wide else 1) * numbers


def largest(array: NDArray[Any]) -> float | int:
    """Give the largest magnitude in an array: of complex numbers, that of either part.

    Returns:
        A float, NaN if there is one among the values; an integer for integers and bools.

    Example:
        >>> largest(np.array([1 - 2j])), largest(np.array([-128], np.int8))
        (2.0, 128)
    """
    if not array.size:
        return 0
    if array.dtype.kind == "c":
        array = np.require(array, requirements="C").view(array.real.dtype)
    number = int if array.dtype.kind in "biu" else float
    with np.errstate(invalid="ignore"):  # narrow floats' NaN
        return max(number(array.max()), -number(array.min()))


def fits(array: NDArray[Any], peak: float | int, weight: int, times: int, wide: bool) -> bool:
    """Tell whether this many clients can sum an array times its weight, each as large as this one.

    Args:
        array: Of one client.
        peak: What `largest` says of it; finite.
        weight: The client's.
        times: How many such clients.
        wide: Whether each number has two words.

    Example:
        >>> [fits(np.ones(1), 1.0, 1000, times, wide=False) for times in (500, 600)]
        [True, False]
    """
    if array.dtype.kind in "biu":
        term = weight * int(peak)
        return (term >> SHIFT) + 1 < 2**62 // times if wide else term * times < 2**63
    return ceil(weight * peak) * times < (LIMIT if wide else ONE_WORD)


def to_words(mean: ExactMean, wide: bool) -> list[Words]:
    """Give the sums of a mean.

    Args:
        mean: Of one client.
        wide: Whether each number has a second word. One does where `fits_one_word`.

    Returns:
        Parts, to be joined: floating arrays by name, then the others by name; the second words after all
        first ones.

    Example:
        >>> mean = ExactMean({"w": np.zeros(1)})
        >>> mean.add({"w": np.array([2.0**-44])}, weight=3)
        >>> to_words(mean, wide=False)
        [array([3], dtype=uint64)]
    """
    integers = [mean._integers[name].words() for name in sorted(mean._integers)]
    parts = [mean._floats.words().view(np.uint64), *(low for low, _ in integers)]
    if wide:
        parts += [mean._floats.second_words().view(np.uint64), *(above for _, above in integers)]
    return parts


def words_of_numbers(numbers: Sequence[int]) -> tuple[Words, Words]:
    """Give whole numbers as words: each modulo 2^64, and its multiples of 2^36, rounded down.

    Example:
        >>> numbers_from_words(*words_of_numbers([-1, 2**90]))
        [-1, 1237940039285380274899124224]
    """
    low = np.array([number & _MASK for number in numbers], np.uint64)
    return low, np.array([(number >> SHIFT) & _MASK for number in numbers], np.uint64)


def numbers_from_words(low: Words, high: Words) -> list[int]:
    """Read sums of what `words_of_numbers` gave, of magnitudes under 2^97."""
    return [
        (multiples << SHIFT) + ((first - (multiples << SHIFT)) & _MASK)
        for first, multiples in zip(low.tolist(), high.view(np.int64).tolist(), strict=True)
    ]


def from_words(like: Arrays, words: Words, wide: bool, total_weight: int, num_updates: int) -> ExactMean:
    """Make the mean that sums of words are of.

    Args:
        like: The global model's arrays.
        words: The sum, modulo 2^64, of what `to_words` gave.
        wide: As it was there.
        total_weight: Of all updates in it.
        num_updates: How many there are.

    Raises:
        AggregationOverflow: No such updates could have this sum.

    Example:
        >>> like = {"w": np.zeros(2, np.float32), "steps": np.array(0)}
        >>> total = np.zeros(3, np.uint64)
        >>> for value in (1.0, 2.0):
        ...     mean = ExactMean(like)
        ...     mean.add({"w": np.full(2, value, np.float32), "steps": np.array(7)}, weight=1)
        ...     total += np.concatenate(to_words(mean, wide=False))
        >>> from_words(like, total, wide=False, total_weight=2, num_updates=2).result()
        {'w': array([1.5, 1.5], dtype=float32), 'steps': array(7)}
    """
    mean = ExactMean(like)
    numbers = number_of_words(like, wide=False)
    if words.shape != (number_of_words(like, wide),):
        raise ValueError(f"`words`: expected {number_of_words(like, wide)}, got shape {words.shape}")
    first, second = words[:numbers], words[numbers:] if wide else None
    floats = mean._floats.words().size
    mean._floats.set_words(
        first[:floats].view(np.int64), None if second is None else second[:floats].view(np.int64)
    )
    place = floats
    for name in sorted(mean._integers):
        entry = mean._integers[name].entry
        part = slice(place, place := place + like[name].size)
        above = None if second is None else second[part]
        mean._integers[name] = IntegerSum.from_words(entry, first[part], above)
    mean._total_weight, mean._num_updates = total_weight, num_updates
    return mean
