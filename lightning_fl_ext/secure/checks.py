"""What a client checks before it masks, since nobody can afterwards."""

from __future__ import annotations

import numpy as np

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.structure import MAX_WEIGHT, Arrays
from lightning_fl_ext.aggregation.words import too_large
from lightning_fl_ext.results.norm import update_norm
from lightning_fl_ext.secure.errors import UpdateRefused

RANGE = 2.0**42
"""What weight times largest magnitude of all clients together must stay under."""


def checked_mean(
    arrays: Arrays, like: Arrays, weight: int, clients: int, max_update_norm: float | None = None
) -> ExactMean:
    """Make the exact mean of one update, if it is one that may go into a sum.

    Args:
        arrays: The client's weights.
        like: The global weights it started from.
        weight: Its number of examples.
        clients: How many are asked: each may use this fraction of the sums' range.
        max_update_norm: Largest L2 norm of the difference of the floating arrays.

    Raises:
        UpdateRefused: It is not. The message holds no value of the update.

    Example:
        >>> like = {"w": np.zeros(2, np.float32)}
        >>> checked_mean({"w": np.array([1.5, 2], np.float32)}, like, 3, clients=5).total_weight
        3
    """
    if odd := sorted(arrays.keys() ^ like.keys()):
        raise UpdateRefused("keys", odd[0], f"the model's {len(like)} keys")
    if not weight:
        raise UpdateRefused("idle", "", "training examples")
    if not 1 <= weight <= MAX_WEIGHT:
        raise UpdateRefused("example-count", "", f"a whole number up to {MAX_WEIGHT}")
    for name, array in arrays.items():
        if array.shape != like[name].shape:
            raise UpdateRefused("shape", name, str(list(like[name].shape)))
        if array.dtype != like[name].dtype:
            raise UpdateRefused("dtype", name, like[name].dtype.name)
        if array.dtype.kind in "biu":
            continue
        peak = float(np.abs(array).max(initial=0))
        if not np.isfinite(peak) and not np.isfinite(array).all():
            raise UpdateRefused("not-finite", name, "finite values")
        if not peak * weight * clients < RANGE:
            raise UpdateRefused("magnitude", name, f"magnitudes times examples under {RANGE / clients:g}")
    if max_update_norm is not None and not update_norm(arrays, like) <= max_update_norm:
        raise UpdateRefused("norm", "", f"an update of norm at most {max_update_norm:g}")
    mean = ExactMean(like)
    mean.add({name: arrays[name] for name in like}, weight)
    if name := too_large(mean, clients) or "":
        raise UpdateRefused("magnitude", name, f"magnitudes times examples that {clients} clients can sum")
    return mean
