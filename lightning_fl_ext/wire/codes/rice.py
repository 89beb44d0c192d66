"""Golomb–Rice coding of bits in context: run lengths, written by a rule that both ends share.

Each bit has a context, known to both ends, in which the rarer value has some frequency. The gaps between
rarer values are then geometric, for which the codes of Golomb ("Run-length encodings", IEEE Trans. Inf.
Theory 12, 1966) are optimal; Rice's are those whose parameter is a power of two. They stay within 5 % of the
entropy at any frequency, and, unlike arithmetic coding, have no state that runs through all symbols: numpy
codes whole arrays at a time.

Layout: for each context that occurs, in ascending order, how many ones it has (LEB128); then, of each gap in
order, the low k bits, k following from that number; then the gaps' high parts in unary (0…01). Each of the
last two is padded with zeros to whole bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.frame import altered


def encode_bits(bits: NDArray[np.bool_], contexts: NDArray[np.unsignedinteger[Any]]) -> bytes:
    """Encode `bits`, given the context of each.

    Args:
        bits: Shape (n,).
        contexts: uint8 or uint16 of shape (n,).
    """
    order, bounds = _group(contexts)
    grouped = bits[order]
    header, low, high = bytearray(), [], []
    for start, stop in bounds:
        group = grouped[start:stop]
        ones = int(np.count_nonzero(group))
        header += write_varint(ones)
        rarer, inverted, k = _rule(ones, stop - start)
        gaps = np.diff(np.flatnonzero(group ^ inverted), prepend=-1)[:rarer] - 1
        low.append(((gaps[:, None] >> np.arange(k)) & 1).astype(np.bool_).reshape(-1))
        high.append(gaps >> k)
    unary = np.concatenate(high) if high else np.zeros(0, dtype=np.int64)
    ends = np.cumsum(unary + 1) - 1
    high_bits = np.zeros(ends[-1] + 1 if ends.size else 0, dtype=np.bool_)
    high_bits[ends] = True
    low_bits = np.concatenate(low) if low else np.zeros(0, dtype=np.bool_)
    return bytes(header) + np.packbits(low_bits).tobytes() + np.packbits(high_bits).tobytes()


def decode_bits(data: bytes, contexts: NDArray[np.unsignedinteger[Any]]) -> tuple[NDArray[np.bool_], bytes]:
    """Invert :func:`encode_bits`; return the bits and the data after them.

    Raises:
        MaskCodeError: The data cannot be what :func:`encode_bits` wrote, with reason ``"altered"``.
    """
    order, bounds = _group(contexts)
    rules = []
    for start, stop in bounds:
        ones, data = read_varint(data)
        if ones > stop - start:
            raise altered("a context holds more ones than bits")
        rules.append(_rule(ones, stop - start))

    low_bits, data = _take_bits(data, sum(rarer * k for rarer, _, k in rules))
    total = sum(rarer for rarer, _, _ in rules)
    longest = total + sum((stop - start) >> k for (start, stop), (_, _, k) in zip(bounds, rules, strict=True))
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(data[: -(-longest // 8)], dtype=np.uint8)))[:total]
    if ends.size < total:
        raise altered("the body ends early")
    _, data = _take_bits(data, int(ends[-1]) + 1 if total else 0)
    high = np.diff(ends, prepend=-1) - 1

    grouped = np.zeros(contexts.size, dtype=np.bool_)
    for (start, stop), (rarer, inverted, k) in zip(bounds, rules, strict=True):
        low, low_bits = low_bits[: rarer * k].reshape(rarer, k), low_bits[rarer * k :]
        gaps = (high[:rarer] << k) + low @ (1 << np.arange(k))
        high = high[rarer:]
        positions = np.cumsum(gaps + 1) - 1
        if rarer and positions[-1] >= stop - start:
            raise altered("a run of bits leaves its context")
        grouped[start:stop] = inverted
        grouped[start + positions] = not inverted
    bits = np.empty_like(grouped)
    bits[order] = grouped
    return bits, data


def _group(contexts: NDArray[Any]) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The stable order by context, and where each context that occurs starts and stops in it."""
    order = np.argsort(contexts, kind="stable")
    edges = np.flatnonzero(np.diff(contexts[order], prepend=contexts[order[:1]])).tolist()
    edges = [0, *edges, contexts.size] if contexts.size else [0]
    return order, list(pairwise(edges))


def _rule(ones: int, size: int) -> tuple[int, bool, int]:
    """How often the rarer bit occurs, whether that is the 0, and Rice's k for its gaps.

    k is the best one, 1 + floor(log2(log(φ − 1) / log(1 − p))) for frequency p and golden ratio φ (Kiely,
    "Selecting the Golomb parameter in Rice coding", IPN Progress Report 42-159, 2004), with −1 / log(1 − p)
    ≈ 1 / p − 1/2 and 2·log(φ) ≈ 246 / 256, in integers.
    """
    inverted = 2 * ones > size
    rarer = size - ones if inverted else ones
    k = max(0, (123 * (2 * size - rarer) // (256 * rarer)).bit_length() - 1) if rarer else 0
    return rarer, inverted, k


def _take_bits(data: bytes, count: int) -> tuple[NDArray[np.uint8], bytes]:
    """Read `count` bits and their padding, which must be 0; return them and the data after them."""
    size = -(-count // 8)
    if len(data) < size:
        raise altered("the body ends early")
    bits = np.unpackbits(np.frombuffer(data[:size], dtype=np.uint8))
    if bits[count:].any():
        raise altered("the padding is not zero")
    return bits[:count], data[size:]


def write_varint(value: int) -> bytes:
    """LEB128: seven bits to a byte, the low ones first."""
    return bytes(_septets(value))


def _septets(value: int) -> Iterator[int]:
    while value >= 0x80:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def read_varint(data: bytes) -> tuple[int, bytes]:
    """Read one LEB128 integer below 2^35; return it and the data after it."""
    value = 0
    for i, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, data[i + 1 :]
    raise altered("a number has no end")
