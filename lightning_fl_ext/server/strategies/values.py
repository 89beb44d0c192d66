"""Small helpers of strategies: numbers as arguments, and dtypes to compute in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.text import shown


def is_float(array: NDArray[Any]) -> bool:
    """Tell whether an array holds real floating numbers."""
    return array.dtype.kind not in "biuc"


def wide(array: NDArray[Any]) -> NDArray[np.float64]:
    """Give an array as float64, which holds every narrower float exactly."""
    return array.astype(np.float64)


def at_least_single(array: NDArray[Any]) -> np.dtype[Any]:
    """Give the dtype in which to hold sums for an array: its own, or float32 if that is narrower."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def positive(name: str, value: float, zero: bool = False) -> float:
    """Take a positive number.

    Raises:
        ValueError: It is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 0 if zero else value > 0) or not value < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number {'of at least' if zero else 'above'} 0. Got {value!r}."
        )
    return float(value)


def weights_and_kept(made: object, like: Arrays, what: str) -> tuple[Arrays, dict[str, Any]]:
    """Take what a user's method gives: new weights, and what the server keeps.

    Args:
        made: What it gave.
        like: Arrays of the weights' names and shapes.
        what: Its name.

    Raises:
        TypeError: It is no pair of dicts.
        ValueError: The weights have other names or shapes.
    """
    pair = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    new, kept = pair
    if not isinstance(new, Mapping) or not isinstance(kept, Mapping):
        kinds = ", ".join(type(each).__name__ for each in made) if isinstance(made, tuple) else ""
        raise TypeError(
            f"{what} must return the new weights and what is kept, two dicts: `return weights, {{}}` if"
            f" nothing is. Got {f'({kinds})' if kinds else type(made).__name__}."
        )
    names = [f"`{shown(name)}` is missing" for name in like if name not in new]
    names += [f"`{shown(name)}` is none of the model's" for name in new if name not in like]
    names += [
        f"`{name}` has the shape {np.shape(new[name])} instead of {array.shape}"
        for name, array in like.items()
        if name in new and np.shape(new[name]) != array.shape
    ]
    if names:
        raise ValueError(
            f"{what} must return weights with the model's names and shapes: {'; '.join(names[:4])}."
        )
    return dict(new), dict(kept)
