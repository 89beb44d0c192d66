"""Minimal random coding: 8 bits choose one of 256 masks that both ends draw from the server's θ.

Havasi et al. ("Minimal Random Code Learning", ICLR 2019, arXiv:1810.00440, algorithm 1) and KLMS (Isik et
al., AISTATS 2024, arXiv:2306.12625): parameters are cut into blocks; for each block both ends draw the same
256 candidates from p, and the client names one of them, drawn with weight Π q/p. The named one has a law
between p and q, nearer to q the smaller the divergence KL(q‖p) of a block is against the 8 bits. So the
update shrinks: a bias that the block size bounds.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.fixed_point import ONE, log2, random_bits, uniforms
from lightning_fl_ext.wire.codes.frame import MaskKey, altered

_CANDIDATES = 256
_FRACTION = 16  # logarithms are in units of 2^-16 bits
_BLOCK_BITS = 3  # the largest mean divergence of a block, of 8 bits sent
_UNIT = 16  # blocks are multiples of it: a step of Philox's counter gives 16 uniforms


def encode(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey
) -> tuple[bytes, NDArray[np.bool_]]:
    """Choose the candidates; return the body and the mask that it decodes to."""
    units = _choose_units(theta, public)
    block = units * _UNIT
    p = _blocks(public, block)
    log_ratio = (_log_odds_of(_blocks(theta, block)) - _log_odds_of(p)).astype(np.float64)
    candidates, choice = random_bits(key, "candidates"), random_bits(key, "choice")
    chosen, masks = np.zeros(len(p), dtype=np.uint8), np.zeros(p.shape, dtype=np.bool_)
    for i, (p_block, ratio) in enumerate(zip(p, log_ratio, strict=True)):
        drawn = uniforms(candidates, _CANDIDATES * block).reshape(_CANDIDATES, block) < p_block
        # Integers below 2^53 in float64: the product is exact, in whatever order it is summed.
        weights = (drawn.astype(np.float64) @ ratio).astype(np.int64)
        chosen[i] = np.argmax(weights + _gumbel().take(uniforms(choice, _CANDIDATES)))
        masks[i] = drawn[chosen[i]]
    return bytes([units]) + chosen.tobytes(), _unblock(masks, theta.size)


def decode(body: bytes, public: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Draw the chosen candidates again, and only those.

    Raises:
        MaskCodeError: The body cannot be what :func:`encode` wrote, with reason ``"altered"``.
    """
    if not body or not body[0]:
        raise altered("the block size is missing")
    units = body[0]
    block = units * _UNIT
    p = _blocks(public, block)
    if len(body) != 1 + len(p):
        raise altered(f"expected {len(p)} blocks, got {len(body) - 1}")
    candidates = random_bits(key, "candidates")
    masks, position = np.zeros(p.shape, dtype=np.bool_), 0
    for i, index in enumerate(body[1:]):
        start = (i * _CANDIDATES + index) * units
        candidates.advance(start - position)
        masks[i] = uniforms(candidates, block) < p[i]
        position = start + units
    return _unblock(masks, public.size)


def _choose_units(theta: NDArray[np.uint16], public: NDArray[np.uint16]) -> int:
    """The largest block, in units, whose divergence stays within its bits on average."""
    table = _log2_table()
    q, p = theta.astype(np.int64), public.astype(np.int64)
    divergence = q * (table[q] - table[p]) + (ONE - q) * (table[ONE - q] - table[ONE - p])
    affordable = (_BLOCK_BITS * ONE * theta.size << _FRACTION) // max(1, int(divergence.sum()))
    return min(max(affordable // _UNIT, 1), 255)


def _blocks(values: NDArray[np.uint16], block: int) -> NDArray[np.uint16]:
    """Deal the parameters out to blocks in turn, so that each has its share of every layer."""
    count = -(-values.size // block)
    padded = np.full(count * block, ONE // 2, dtype=np.uint16)
    padded[: values.size] = values
    return np.ascontiguousarray(padded.reshape(block, count).T)


def _unblock(masks: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    return np.ascontiguousarray(masks.T).reshape(-1)[:size]


def _log_odds_of(x: NDArray[np.uint16]) -> NDArray[np.int64]:
    table = _log2_table()
    return table[x] - table[ONE - x.astype(np.int64)]


@cache
def _log2_table() -> NDArray[np.int64]:
    """log2 of 0 … 2^16; 0 counts as 1."""
    return log2(np.arange(ONE + 1, dtype=np.uint64).clip(1), _FRACTION)


@cache
def _gumbel() -> NDArray[np.int64]:
    """Gumbel noise to base 2, −log2(−log2 u), for u = (x + 1/2) / 2^16.

    The argument that is largest after adding it is a draw with probabilities proportional to 2^argument.
    """
    twice = 2 * np.arange(ONE, dtype=np.uint64) + np.uint64(1)
    minus_log = (17 << _FRACTION) - log2(twice, _FRACTION)
    return -log2(minus_log.clip(1).astype(np.uint64), _FRACTION)
