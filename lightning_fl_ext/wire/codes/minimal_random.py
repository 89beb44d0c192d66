"""Minimal random coding: a few bits choose one of 512 masks that both ends make from the server's θ.

Havasi et al. ("Minimal Random Code Learning", ICLR 2019, arXiv:1810.00440, algorithm 1) and KLMS (Isik et
al., AISTATS 2024, arXiv:2306.12625): parameters are cut into blocks; for each block both ends make the same
candidates from p, and the client names one of them, drawn with weight Π q/p. The named one has a law between
p and q, nearer to q the smaller the divergence KL(q‖p) of a block is against the 9 bits of its number. So
the update shrinks: a bias that the block size bounds.

A draw by weight is the largest of log weight plus Gumbel noise. Noise in descending order makes the same
draw, since the candidates come in no order, and prefers small numbers: they cost about five bits instead of
nine ("ordered random coding", Theis and Yosri, "Algorithms for the communication of samples", ICML 2022,
arXiv:2110.12805).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.candidates import CANDIDATES, COMPILED_FROM, Lines, weigh
from lightning_fl_ext.wire.codes.fixed_point import ONE, log2, random_bits, uniforms
from lightning_fl_ext.wire.codes.frame import MaskKey, altered
from lightning_fl_ext.wire.codes.rice import read_varint, take_bits, write_varint
from lightning_fl_ext.wire.codes.wavelet import decode_integers, encode_integers

_FRACTION = 16  # logarithms are in units of 2^-16 bits
_COARSER = 6  # weights and noise in units of 2^-10 bits, so that a block's sum of ratios fits 31
_BLOCK_BITS = 3  # the largest mean divergence of a block
_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**3, 2**12
_AT_ONCE = 2**16  # parameters, so that what lies between stays in the cache
_LENGTH_BITS = 4  # to write how many bits a number has: 0 … 9


def encode(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey
) -> tuple[bytes, NDArray[np.bool_]] | None:
    """Choose the candidates; return the body and the mask that it decodes to.

    None where θ moved so far that a block would have fewer than 8 parameters: at more than half a bit for
    each, other codes are as short, exact, and much faster.
    """
    odds_p, odds_q = (_log_odds().take(x, mode="clip") for x in (public, theta))
    block = _choose_block(_divergence(theta, public, odds_p), theta.size)
    if block < _SMALLEST_BLOCK:
        return None
    p, ratios = _blocks(public, block, ONE // 2), _blocks(odds_q - odds_p >> _COARSER, block, 0)
    lines, noise = random_bits(key, "candidates"), random_bits(key, "choice")
    chosen, masks = np.empty(len(p), dtype=np.uint16), np.empty(p.shape, dtype=np.bool_)
    for part in _parts(*p.shape):
        drawn = Lines.draw(lines, p[part].shape)
        weights = weigh(drawn, p[part], ratios[part], compiled=theta.size >= COMPILED_FROM)
        weights += _noise(noise, weights.shape)
        chosen[part] = np.argmax(weights, axis=1)
        masks[part] = drawn.masks(p[part], chosen[part])
    return write_varint(block) + _encode_numbers(chosen), _unblock(masks, theta.size)


def decode(body: bytes, public: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Make the chosen candidates again, and only those.

    Raises:
        MaskCodeError: The body cannot be what :func:`encode` wrote, with reason ``"altered"``.
    """
    block, body = read_varint(body)
    if not _SMALLEST_BLOCK <= block <= _LARGEST_BLOCK:
        raise altered(f"blocks of {block} parameters")
    p = _blocks(public, block, ONE // 2)
    chosen = _decode_numbers(body, len(p))
    lines, masks = random_bits(key, "candidates"), np.empty(p.shape, dtype=np.bool_)
    for part in _parts(*p.shape):
        masks[part] = Lines.draw(lines, p[part].shape).masks(p[part], chosen[part])
    return _unblock(masks, public.size)


def _divergence(theta: NDArray[np.uint16], public: NDArray[np.uint16], odds_p: NDArray[np.int32]) -> int:
    """KL(q‖p) summed over the parameters: q log(q / p) + (1 − q) log((1 − q) / (1 − p))."""
    entropies, closed = _entropies().take(theta, mode="clip"), _log_closed().take(public, mode="clip")
    return -int(entropies.sum()) - ONE * int(closed.sum()) - int((theta * odds_p.astype(np.int64)).sum())


def _choose_block(divergence: int, size: int) -> int:
    """The largest block whose divergence stays within its bits on average."""
    return min((_BLOCK_BITS * ONE * size << _FRACTION) // max(1, divergence), _LARGEST_BLOCK)


def _blocks(values: NDArray[Any], block: int, padding: int) -> NDArray[Any]:
    """Deal the parameters out to blocks in turn, so that each has its share of every layer.

    To a prime number of blocks: one that divides the length of rows would deal whole columns to the same few,
    and what depends on one input, or one place of a kernel, would all be in them. (Rows of a multiple of that
    very prime are an exception.)
    """
    count = _prime_from(-(-values.size // block))
    length = max(1, -(-values.size // count))
    padded = np.full(count * length, padding, dtype=values.dtype)
    padded[: values.size] = values
    return np.ascontiguousarray(padded.reshape(length, count).T)


def _prime_from(number: int) -> int:
    """The smallest prime from a number on."""
    while number < 2 or any(number % divisor == 0 for divisor in range(2, isqrt(number) + 1)):
        number += 1
    return number


def _unblock(masks: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    return np.ascontiguousarray(masks.T).reshape(-1)[:size]


def _parts(count: int, block: int) -> Iterator[slice]:
    """Cut blocks into parts of some thousands of parameters."""
    step = max(1, _AT_ONCE // block)
    return (slice(start, start + step) for start in range(0, count, step))


def _encode_numbers(numbers: NDArray[np.uint16]) -> bytes:
    """Write how many bits each number has, entropy-coded, and the bits under the highest as they are."""
    lengths = _lengths(numbers)
    bits = (numbers[:, None] >> _PLACES & np.uint16(1)).astype(np.bool_)[_under_highest(lengths)]
    return encode_integers(lengths, _LENGTH_BITS) + np.packbits(bits).tobytes()


def _decode_numbers(data: bytes, count: int) -> NDArray[np.uint16]:
    """Invert :func:`_encode_numbers`."""
    lengths, data = decode_integers(data, count, _LENGTH_BITS)
    if count and lengths.max() > CANDIDATES.bit_length() - 1:
        raise altered(f"a candidate's number has more bits than those of {CANDIDATES}")
    places = _under_highest(lengths)
    bits = np.zeros(places.shape, dtype=np.uint16)
    bits[places], data = take_bits(data, int(np.count_nonzero(places)))
    if data:
        raise altered("the body goes on after its end")
    highest = np.uint16(1) << lengths >> np.uint16(1)
    numbers: NDArray[np.uint16] = highest + (bits << _PLACES).sum(axis=1, dtype=np.uint16)
    return numbers


_PLACES = np.arange(CANDIDATES.bit_length() - 2, dtype=np.uint16)


def _under_highest(lengths: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which places of each number lie under its highest bit, shape (numbers, places)."""
    places: NDArray[np.bool_] = lengths[:, None] > _PLACES + np.uint16(1)
    return places


def _lengths(numbers: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """How many bits each number has; 0 has none."""
    powers = 1 << np.arange(CANDIDATES.bit_length() - 1)
    return np.searchsorted(powers, numbers, side="right").astype(np.uint16)


def _noise(generator: np.random.Philox, shape: tuple[int, int]) -> NDArray[np.int32]:
    """Gumbel noise for the candidates of each block, the largest first."""
    u = uniforms(generator, shape[0] * shape[1]).reshape(shape)
    u.sort(axis=1)
    return _gumbel().take(u, mode="clip")


@cache
def _log2_table() -> NDArray[np.int64]:
    """log2 of 0 … 2^16; 0 counts as 1."""
    return log2(np.arange(ONE + 1, dtype=np.uint64).clip(1), _FRACTION)


@cache
def _log_odds() -> NDArray[np.int32]:
    """log2(x / (2^16 − x)) for each x below 2^16."""
    table = _log2_table()
    return (table[:-1] - table[:0:-1]).astype(np.int32)


@cache
def _log_closed() -> NDArray[np.int64]:
    """log2(1 − x / 2^16) for each x below 2^16."""
    return _log2_table()[:0:-1] - (16 << _FRACTION)


@cache
def _entropies() -> NDArray[np.int64]:
    """The entropy of a bit that is 1 with probability x / 2^16, times 2^16, for each x below 2^16."""
    x = np.arange(ONE, dtype=np.int64)
    return -x * _log_odds() - ONE * _log_closed()


@cache
def _gumbel() -> NDArray[np.int32]:
    """Gumbel noise to base 2, −log2(−log2(1 − u)), for u = (x + 1/2) / 2^16, in coarser units; it descends.

    The argument that is largest after adding it is a draw with probabilities proportional to 2^argument.
    """
    twice = 2 * np.arange(ONE, dtype=np.uint64) + np.uint64(1)
    minus_log = (17 << _FRACTION) - log2(twice[::-1], _FRACTION)
    noise = (_FRACTION << _FRACTION) - log2(minus_log.clip(1).astype(np.uint64), _FRACTION)
    return (noise >> _COARSER).astype(np.int32)
