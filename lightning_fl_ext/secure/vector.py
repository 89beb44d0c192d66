"""What is inside the sum: the arrays times the examples, the examples, and each metric times its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_fl_ext.aggregation import AggregationOverflow, ExactMean
from lightning_fl_ext.aggregation.structure import MAX_WEIGHT, Arrays
from lightning_fl_ext.aggregation.words import from_words, number_of_words, to_words
from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.masks import Words

_NUMBER = {"": np.zeros(())}
_TAIL = 2
"""Words after each sum: of the weights, and of the number of clients."""


class Metric(NamedTuple):
    """A number that a client has logged.

    Attributes:
        value: The number.
        weight: What it counts for in the mean.
    """

    value: float
    weight: int


class Total(NamedTuple):
    """What the sum of all clients' vectors says.

    Attributes:
        mean: Of the arrays.
        metrics: Means by name.
    """

    mean: ExactMean
    metrics: dict[str, float]


def encode(
    mean: ExactMean,
    wide: bool,
    metrics: Mapping[str, Metric],
    names: Sequence[str],
    out: Words | None = None,
) -> Words:
    """Make a client's vector.

    Args:
        mean: Of its arrays alone, weighted.
        wide: Whether each number of the arrays has a second word; metrics always have.
        metrics: What the client has.
        names: Which of them are summed, and in which order.
        out: Of `length`, to be written to; by default a new array.

    Raises:
        SecureAggregationError: The client lacks a metric.
    """
    if missing := [name for name in names if name not in metrics]:
        raise SecureAggregationError(f"asked for metrics that this client does not have: {missing[:3]}")
    parts = [*to_words(mean, wide), _tail(mean.total_weight)]
    for name in names:
        parts += [*to_words(_mean_of(metrics[name]), True), _tail(metrics[name].weight)]
    return np.concatenate(parts, out=out)


def can_be_summed(metric: Metric, clients: int) -> bool:
    """Tell whether a metric is finite, and small enough for the sum of this many clients."""
    if not (np.isfinite(metric.value) and 1 <= metric.weight <= MAX_WEIGHT):
        return False
    return abs(metric.value) * metric.weight * clients < 2.0**42


def length(like: Arrays, wide: bool, names: Sequence[str]) -> int:
    """Give the number of words in a vector."""
    each = number_of_words(_NUMBER, wide=True) + _TAIL
    return number_of_words(like, wide) + _TAIL + each * len(names)


def decode(like: Arrays, words: Words, wide: bool, names: Sequence[str], clients: int) -> Total:
    """Read the sum of the vectors of some clients, having checked that it can be such a sum.

    Raises:
        SecureAggregationError: It cannot.
    """
    try:
        mean, rest = _decode(like, words, wide, clients)
        metrics = {}
        for name in names:
            of_metric, rest = _decode(_NUMBER, rest, True, clients)
            metrics[name] = float(of_metric.result()[""])
    except AggregationOverflow:
        raise SecureAggregationError("the unmasked sum is out of bounds: it is no sum of updates") from None
    return Total(mean, metrics)


def _decode(like: Arrays, words: Words, wide: bool, clients: int) -> tuple[ExactMean, Words]:
    size = number_of_words(like, wide)
    weight, number = (int(word) for word in words[size : size + _TAIL])
    if number != clients or not clients <= weight <= clients * MAX_WEIGHT:
        raise SecureAggregationError(
            f"the unmasked sum does not say that it is of {clients} clients with a plausible count of"
            " examples: it is no sum of updates"
        )
    return from_words(like, words[:size], wide, weight, clients), words[size + _TAIL :]


def _mean_of(metric: Metric) -> ExactMean:
    mean = ExactMean(_NUMBER)
    mean.add({"": np.asarray(metric.value, np.float64)}, metric.weight)
    return mean


def _tail(weight: int) -> Words:
    return np.array([weight, 1], np.uint64)
