"""Integer arithmetic that gives the same bits on every machine: probabilities, uniforms, logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.frame import MaskKey

__all__ = ["sample_mask", "to_fixed_point"]

ONE = 2**16  # a probability of 1


def to_fixed_point(probs: NDArray[Any]) -> NDArray[np.uint16]:
    """Round probabilities to units of 2^-16, from 1 to 65535: never certain, at most 2^-16 away.

    Args:
        probs: Floating probabilities of any shape, flattened in C order.

    Returns:
        uint16 of shape (parameters,).

    Raises:
        ValueError: A probability is NaN or outside [0, 1].

    Example:
        >>> to_fixed_point(np.array([0.0, 0.25, 1.0]))
        array([    1, 16384, 65535], dtype=uint16)
    """
    flat = np.asarray(probs, dtype=np.float64).reshape(-1)
    if not ((flat >= 0) & (flat <= 1)).all():
        raise ValueError("`probs` must lie in [0, 1], without NaN. Scores that diverged give NaN.")
    return np.rint(flat * ONE).clip(1, ONE - 1).astype(np.uint16)


def random_bits(key: MaskKey, purpose: str) -> np.random.Philox:
    """A counter-based generator for one purpose (Salmon et al., "Parallel random numbers", SC 2011).

    Only its `random_raw` is used, the part of numpy's random streams that may not change between versions.
    """
    return np.random.Philox(key=int.from_bytes(key.hash(purpose)[:16], "little"))


def uniforms(generator: np.random.Philox, count: int) -> NDArray[np.uint16]:
    """Draw `count` uniform integers in [0, 2^16), four from each 64 bits, the low bits first."""
    raw = generator.random_raw(-(-count // 4)).astype("<u8", copy=False)
    return raw.view("<u2")[:count].astype(np.uint16, copy=False)


def dither(key: MaskKey, count: int) -> NDArray[np.uint16]:
    """The uniforms u of a mask [u < θ], known to both ends.

    Independent between clients; or, with a stratum, one set for the round that each client turns by its
    slot's share of the circle. Each client's own u is uniform either way, so its mask has the same law,
    but the clients' masks are negatively correlated, and their mean varies less: "correlated
    quantization", Suresh et al., ICML 2022 (arXiv:2203.04925).
    """
    if key.stratum is None:
        return uniforms(random_bits(key, "dither"), count)
    slot, slots = key.stratum
    shared = MaskKey(key.run, key.round, key.model)
    return uniforms(random_bits(shared, "stratified dither"), count) + np.uint16(slot * ONE // slots)


def sample_mask(theta: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Draw each entry open with probability θ / 2^16, from the key's random numbers.

    Args:
        theta: Probabilities in units of 2^-16, shape (parameters,); see :func:`to_fixed_point`.
        key: Run, round, model, client and stratum.

    Returns:
        The mask, bool of shape (parameters,): the one that the codes ``"packed"`` and ``"dithered"`` send.

    Example:
        >>> theta = to_fixed_point(np.full(10_000, 0.3))
        >>> sample_mask(theta, MaskKey(run=7, round=1, model="m", client="a")).mean().round(2)
        np.float64(0.3)
    """
    return dither(key, theta.size) < theta


def log2(values: NDArray[np.uint64], fraction_bits: int) -> NDArray[np.int64]:
    """Floor of 2^fraction_bits · log2 of integers in [1, 2^32), one bit after the other.

    Each bit of the logarithm comes from squaring the mantissa. Truncating that to 32 bits makes the result
    smaller than the true floor in rare cases, but the same on every machine.
    """
    exponent = np.zeros(values.shape, dtype=np.uint64)
    for shift in (16, 8, 4, 2, 1):
        exponent += np.where(values >> exponent >> np.uint64(shift), np.uint64(shift), np.uint64(0))
    mantissa = values << (np.uint64(31) - exponent)  # in [2^31, 2^32)
    result = exponent.astype(np.int64)
    for _ in range(fraction_bits):
        mantissa = mantissa * mantissa >> np.uint64(31)  # in [2^31, 2^33)
        carry = mantissa >> np.uint64(32)
        mantissa >>= carry
        result = result * 2 + carry.astype(np.int64)
    return result
