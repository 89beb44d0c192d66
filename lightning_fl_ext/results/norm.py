"""How large an update is."""

from __future__ import annotations

import math

import numpy as np

from lightning_fl_ext.results.update import Arrays


def update_norm(arrays: Arrays, like: Arrays, block: int = 1 << 13) -> float:
    """Compute the L2 norm of the difference of the floating arrays, in float64, block by block.

    Example:
        >>> update_norm({"w": np.array([3.0, 4.0])}, {"w": np.zeros(2)})
        5.0
    """
    total = 0.0
    for name, array in arrays.items():
        if array.dtype.kind in "biu":
            continue
        new, old = array.reshape(-1), like[name].reshape(-1)
        difference = np.empty(min(block, new.size), np.complex128 if array.dtype.kind == "c" else np.float64)
        for start in range(0, new.size, block):
            part = slice(start, start + block)
            here = difference[: new[part].size]
            np.copyto(here, new[part])
            here -= old[part]
            total += float(np.vdot(here, here).real)
    return math.sqrt(total)
