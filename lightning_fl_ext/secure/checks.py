"""What a client checks before it masks, since nobody can afterwards."""

from __future__ import annotations

from math import isfinite

from lightning_fl_ext.aggregation.structure import MAX_WEIGHT, Arrays, structure_of
from lightning_fl_ext.aggregation.words import fits, largest
from lightning_fl_ext.results.norm import update_norm
from lightning_fl_ext.secure.errors import UpdateRefused

RANGE = 2.0**42
"""What weight times largest magnitude of all clients together must stay under."""


def check_update(
    arrays: Arrays, like: Arrays, weight: int, clients: int, max_update_norm: float | None = None
) -> bool:
    """Check that an update may go into a sum.

    Args:
        arrays: The client's weights.
        like: The global weights it started from.
        weight: Its number of examples.
        clients: How many are asked: each may use this fraction of the sums' range.
        max_update_norm: Largest L2 norm of the difference of the floating arrays.

    Returns:
        Whether the sum of that many such updates needs two words a number.

    Raises:
        UpdateRefused: It is not. The message holds no value of the update.

    Example:
        >>> import numpy as np
        >>> like = {"w": np.zeros(2, np.float32)}
        >>> check_update({"w": np.array([1.5, 2], np.float32)}, like, 3, clients=5)
        False
    """
    if odd := sorted(arrays.keys() ^ like.keys()):
        raise UpdateRefused("keys", odd[0], f"the model's {len(like)} keys")
    if not weight:
        raise UpdateRefused("idle", "", "examples")
    if not 1 <= weight <= MAX_WEIGHT:
        raise UpdateRefused("example-count", "", f"a whole number up to {MAX_WEIGHT}")
    structure_of(like)  # complains about what has no mean
    wide = False
    for name, array in arrays.items():
        if array.shape != like[name].shape:
            raise UpdateRefused("shape", name, str(list(like[name].shape)))
        if array.dtype != like[name].dtype:
            raise UpdateRefused("dtype", name, like[name].dtype.name)
        peak = largest(array)
        if not isfinite(peak):
            raise UpdateRefused("not-finite", name, "finite values")
        if array.dtype.kind not in "biu" and not peak * weight * clients < RANGE:
            raise UpdateRefused("magnitude", name, f"magnitudes times examples under {RANGE / clients:g}")
        if not fits(array, peak, weight, clients, wide=True):
            expected = f"magnitudes times examples that {clients} clients can sum"
            raise UpdateRefused("magnitude", name, expected)
        wide |= not fits(array, peak, weight, clients, wide=False)
    if max_update_norm is not None and not update_norm(arrays, like) <= max_update_norm:
        raise UpdateRefused("norm", "", f"an update of norm at most {max_update_norm:g}")
    return wide
