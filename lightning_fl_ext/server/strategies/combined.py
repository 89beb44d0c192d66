"""What an algorithm's server half gives for a round, checked before it is the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.text import shown


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
