"""The 512 candidate masks of minimal random coding, which both ends make from the same random numbers.

A parameter's uniform in candidate k is the top half of ``slope * k + offset`` modulo 2^32, with a random
slope and offset of its own: uniform for every k and independent for any two (M. Dietzfelbinger, "Universal
hashing and k-wise independent random variables via integer arithmetic without primes", STACS 1996). So every
candidate has the server's law, and the weights of two are uncorrelated, which is what the code's accuracy
depends on; and a candidate costs a multiplication where numbers of its own would cost a block cipher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 512

COMPILED_FROM = 2**17
"""Parameters from which a second of compilation, once a process, pays, where numba is installed."""

Ratios = NDArray[np.int32]


class Lines(NamedTuple):
    """Slopes and offsets of some blocks of parameters, uint32 of shape (blocks, parameters)."""

    slopes: NDArray[np.uint32]
    offsets: NDArray[np.uint32]

    @classmethod
    def draw(cls, generator: np.random.Philox, shape: tuple[int, int]) -> Lines:
        """Draw them, one number of 64 bits for each parameter: the slope in the low half."""
        raw = generator.random_raw(shape[0] * shape[1]).reshape(shape)
        return cls(raw.astype(np.uint32), (raw >> np.uint64(32)).astype(np.uint32))

    def masks(self, p: NDArray[np.uint16], chosen: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Make one candidate of each block.

        Args:
            p: The server's θ in units of 2^-16, shape (blocks, parameters).
            chosen: Which, shape (blocks,).
        """
        uniforms = self.slopes * chosen[:, None].astype(np.uint32) + self.offsets
        return uniforms < _thresholds(p)


def weigh(lines: Lines, p: NDArray[np.uint16], ratios: Ratios, compiled: bool) -> NDArray[np.int32]:
    """Sum the log odds ratios of the parameters that are open, in each candidate of each block.

    Args:
        lines: The blocks' random numbers.
        p: The server's θ, shape (blocks, parameters).
        ratios: The same shape; a block's magnitudes add up to less than 2^31.
        compiled: Whether numba may be asked; the sums are the same.

    Returns:
        int32 of shape (blocks, CANDIDATES).
    """
    weights = np.zeros((len(p), CANDIDATES), dtype=np.int32)
    add = (_compiled() if compiled else None) or _add_by_matrices
    add(lines.slopes, lines.offsets, _thresholds(p), ratios, weights)
    return weights


def _thresholds(p: NDArray[np.uint16]) -> NDArray[np.uint32]:
    return p.astype(np.uint32) << np.uint32(16)


def _add_by_matrices(slopes: Any, offsets: Any, thresholds: Any, ratios: Any, weights: Any) -> None:
    numbers = np.arange(CANDIDATES, dtype=np.uint32)
    for slope, offset, threshold, ratio, sums in zip(
        slopes, offsets, thresholds, ratios, weights, strict=True
    ):
        drawn = slope[:, None] * numbers + offset[:, None] < threshold[:, None]
        # Integers below 2^53 in float64: exact, in whatever order they are summed.
        sums += (ratio.astype(np.float64) @ drawn.astype(np.float64)).astype(np.int32)


def _add_by_loops(slopes: Any, offsets: Any, thresholds: Any, ratios: Any, weights: Any) -> None:
    for block in range(slopes.shape[0]):
        sums = weights[block]
        for i in range(slopes.shape[1]):
            slope, uniform = slopes[block, i], offsets[block, i]
            threshold, ratio = thresholds[block, i], ratios[block, i]
            for k in range(sums.size):  # which becomes vector code
                sums[k] += ratio if uniform < threshold else np.int32(0)
                uniform = np.uint32(uniform + slope)


@cache
def _compiled() -> Callable[..., None] | None:
    try:
        from numba import njit
    except ImportError:
        return None
    compiled: Callable[..., None] = njit(nogil=True)(_add_by_loops)
    return compiled
