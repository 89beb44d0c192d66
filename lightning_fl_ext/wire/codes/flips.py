"""How often each parameter was open in a round, coded by what its clients' dithers tell.

Whoever knows the θ p that masks were drawn from, and whose masks they are, can draw each client's u and guess
its mask [u < p] as the server does (:mod:`dithered`). What the guesses miss of the sum are flips: from closed
to open, or back. A flip is the likelier the nearer u lies to p in log odds, and guesses that are closed can
only rise, so the guesses' distances say how many flips of each kind to expect. Those two numbers are the
contexts; of whose flips they are, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.dithered import _log_odds
from lightning_fl_ext.wire.codes.fixed_point import ONE, dither
from lightning_fl_ext.wire.codes.frame import MaskKey, altered
from lightning_fl_ext.wire.codes.rice import decode_bits, encode_bits

MOST_CLIENTS = 256
"""Clients of whose masks a θ is made up; to guess them takes nanoseconds for each parameter and client."""

_CHUNK = 2**16  # parameters at a time, so that what lies between stays in the cache
_UNIT_BITS = 12  # expected flips are in units of 2^-12 of a flip at distance 0
_HALVING = 32  # the distance that halves it, in 1/256 bits of log odds

Expected = NDArray[np.uint32]


def encode_sum(total: NDArray[np.uint16], public: NDArray[np.uint16], keys: Sequence[MaskKey]) -> bytes:
    """Encode the sum of the clients' masks.

    Args:
        total: How many of the masks were open, shape (parameters,).
        public: The θ that they were drawn from, in units of 2^-16, shape (parameters,).
        keys: The clients' keys, at most ``MOST_CLIENTS``.
    """
    guess, up, down = _expect(public, keys)
    change = total.astype(np.int32) - guess
    moved = change != 0
    data = encode_bits(moved, _amount(up, down))
    places = np.flatnonzero(moved)
    change, up, down = change[places], up[places], down[places]
    rises = change > 0
    data += encode_bits(rises, _balance(up, down))
    left, strength = abs(change), _strength(rises, up, down)
    while left.size:
        left = left - 1
        more = left > 0
        data += encode_bits(more, strength)
        left, strength = left[more], strength[more]
    return data


def decode_sum(
    data: bytes, public: NDArray[np.uint16], keys: Sequence[MaskKey]
) -> tuple[NDArray[np.uint16], bytes]:
    """Invert :func:`encode_sum`; return the sum and the data after it.

    Raises:
        MaskCodeError: The data cannot be what :func:`encode_sum` wrote, with reason ``"altered"``.
    """
    guess, up, down = _expect(public, keys)
    moved, data = decode_bits(data, _amount(up, down))
    places = np.flatnonzero(moved)
    up, down = up[places], down[places]
    rises, data = decode_bits(data, _balance(up, down))
    size, left, strength = np.zeros(places.size, np.int32), np.arange(places.size), _strength(rises, up, down)
    for _ in keys:
        size[left] += 1
        more, data = decode_bits(data, strength)
        left, strength = left[more], strength[more]
        if not left.size:
            break
    total = guess.astype(np.int32)
    total[places] += np.where(rises, size, -size)
    if left.size or (total < 0).any() or (total > len(keys)).any():
        raise altered(f"a parameter was open in fewer than none or more than all of {len(keys)} masks")
    return total.astype(np.uint16), data


def _expect(
    public: NDArray[np.uint16], keys: Sequence[MaskKey]
) -> tuple[NDArray[np.uint16], Expected, Expected]:
    """Count the guesses that are open, and add up how many flips to open and to closed are to be expected."""
    log_odds, weights = _log_odds(), _weight_of_distance()
    guess = np.zeros(public.size, dtype=np.uint16)
    both = np.zeros(public.size, dtype=np.uint64)
    for key in keys:
        u = dither(key, public.size)
        for start in range(0, u.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            guess[chunk] += u[chunk] < public[chunk]
            distance = log_odds.take(u[chunk], mode="clip") - log_odds.take(public[chunk], mode="clip")
            both[chunk] += weights.take(distance.view(np.uint16), mode="clip")
    halves = both.astype("<u8", copy=False).view("<u4").reshape(-1, 2)
    return guess, halves[:, 0].astype(np.uint32), halves[:, 1].astype(np.uint32)


@cache
def _weight_of_distance() -> NDArray[np.uint64]:
    """How likely a flip is at each signed distance, indexed by its 16 bits: those to open in the low half.

    Halved with every step of ``_HALVING``, and straight in between.
    """
    distance = np.arange(ONE, dtype=np.uint16).view(np.int16).astype(np.int64)
    steps, within = np.divmod(abs(distance), _HALVING)
    weight = ((2 * _HALVING - within) << _UNIT_BITS) // (2 * _HALVING) >> np.minimum(steps, 31)
    return np.where(distance < 0, weight << 32, weight).astype(np.uint64)


def _quarter_octaves(values: Expected) -> NDArray[np.int32]:
    """Four times the binary logarithm of integers below 2^24, rounded down, straight between octaves.

    Read off the exponent and the first two bits of the mantissa, since such integers are exact in float32.
    0 is far below 1.
    """
    exact: NDArray[Any] = values.astype(np.float32)
    return (exact.view(np.int32) >> 21) - (127 << 2)


def _amount(up: Expected, down: Expected) -> NDArray[np.uint8]:
    """The context of whether a parameter's sum differs from its guess: flips of both kinds, 2^-4 … 2^8."""
    return (_quarter_octaves(up + down) - 4 * (_UNIT_BITS - 4)).clip(0, 47).astype(np.uint8)


def _balance(up: Expected, down: Expected) -> NDArray[np.uint8]:
    """The context of which way: the ratio of both kinds, 2^-8 … 2^8."""
    return ((_quarter_octaves(up) - _quarter_octaves(down) >> 1) + 16).clip(0, 31).astype(np.uint8)


def _strength(rises: NDArray[np.bool_], up: Expected, down: Expected) -> NDArray[np.uint8]:
    """The context of how far: flips of the kind that it is, 2^-2 … 2^6."""
    force = np.where(rises, up, down)
    return ((_quarter_octaves(force) >> 1) - 2 * (_UNIT_BITS - 2)).clip(0, 15).astype(np.uint8)
