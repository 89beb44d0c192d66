"""The dithered code: exactly a Bernoulli mask, at the price of the client's change of mind.

Both ends draw the same u. The client's mask is [u < q] for its own θ q, so the law of FedPM is untouched; the
server's guess is [u < p] for the θ p it sent. They differ only where u lies between p and q, which has
probability |q − p|, and only those flips are sent. The context of a flip is how far u lies from p in log
odds: a flip far away needs a large step of the client's score.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.fixed_point import ONE, dither, log2
from lightning_fl_ext.wire.codes.frame import MaskKey, altered
from lightning_fl_ext.wire.codes.rice import decode_bits, encode_bits

_CHUNK = 2**16  # parameters at a time, so that what lies between u and contexts stays in the cache
_BIN = 64  # width of a context in 1/256 bits of log odds
_BINS = 13  # contexts, of which the last is open-ended


def encode(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey
) -> tuple[bytes, NDArray[np.bool_]]:
    """Draw the mask that `sample_mask` draws; return the body and the mask."""
    u = dither(key, theta.size)
    mask = u < theta
    return encode_bits(mask ^ (u < public), _contexts(u, public)), mask


def decode(body: bytes, public: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Invert :func:`encode`.

    Raises:
        MaskCodeError: The body cannot be what :func:`encode` wrote, with reason ``"altered"``.
    """
    u = dither(key, public.size)
    flips, rest = decode_bits(body, _contexts(u, public))
    if rest:
        raise altered("the body goes on after its end")
    return flips ^ (u < public)


def _contexts(u: NDArray[np.uint16], public: NDArray[np.uint16]) -> NDArray[np.uint8]:
    log_odds, context_of = _log_odds(), _context_of_distance()
    contexts = np.empty(u.size, dtype=np.uint8)
    for start in range(0, u.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        # No index is ever out of range; "clip" spares numpy the buffer it keeps to raise from.
        distance = log_odds.take(u[chunk], mode="clip") - log_odds.take(public[chunk], mode="clip")
        context_of.take(distance.view(np.uint16), out=contexts[chunk], mode="clip")
    return contexts


@cache
def _log_odds() -> NDArray[np.int16]:
    """log2(x / (2^16 − x)) in units of 1/256 for each x; 0 counts as 1."""
    x = np.arange(ONE, dtype=np.uint64).clip(1)
    return (log2(x, 8) - log2(ONE - x, 8)).astype(np.int16)


@cache
def _context_of_distance() -> NDArray[np.uint8]:
    """The context of each difference of log odds, indexed by its 16 bits."""
    distance = np.arange(ONE, dtype=np.uint16).view(np.int16).astype(np.int64)
    return np.minimum(abs(distance) // _BIN, _BINS - 1).astype(np.uint8)
