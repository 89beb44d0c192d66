"""How an algorithm with two halves shows in messages: keys of the config, and names of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

ALGORITHM = "algorithm"
"""Key of the config: the name of the client's half."""

COUNTED = "counted-round"
"""Key of the config: the last round in which this client's update counted; 0 for none."""

FOR_ALL = ("learning-rate", "proximal-mu")
"""Keys of the config that clients heed whatever the strategy."""

OF_STRATEGIES = {
    "feddyn-alpha": "FedDyn(alpha=...)",
    "ditto-lambda": "Ditto(strength=...)",
    "fedrep-head-epochs": "FedRep(head_epochs=...)",
}
"""Keys of the config that one client half heeds, and the strategy that sets each."""

EXTRA = "algorithm/"
"""What the names of arrays begin with that travel beside the weights, in the same record."""

ValueT = TypeVar("ValueT")


def joined(weights: Mapping[str, ValueT], extras: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Put what an algorithm sends beside the weights.

    Example:
        >>> joined({"w": 1}, {"w": 2})
        {'w': 1, 'algorithm/w': 2}
    """
    return {**weights, **{f"{EXTRA}{name}": value for name, value in extras.items()}}


def parted(arrays: Mapping[str, ValueT]) -> tuple[dict[str, ValueT], dict[str, ValueT]]:
    """Take the weights apart from what an algorithm sends beside them.

    Example:
        >>> parted({"w": 1, "algorithm/w": 2})
        ({'w': 1}, {'w': 2})
    """
    extras = {name.removeprefix(EXTRA): v for name, v in arrays.items() if name.startswith(EXTRA)}
    return {name: v for name, v in arrays.items() if not name.startswith(EXTRA)}, extras
