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

from collections.abc import Iterator, Sequence
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
    return encode_groups([grouped[start:stop] for start, stop in bounds])


def decode_bits(data: bytes, contexts: NDArray[np.unsignedinteger[Any]]) -> tuple[NDArray[np.bool_], bytes]:
    """Invert :func:`encode_bits`; return the bits and the data after them.

    Raises:
        MaskCodeError: The data cannot be what :func:`encode_bits` wrote, with reason ``"altered"``.
    """
    order, bounds = _group(contexts)
    groups, data = decode_groups(data, [stop - start for start, stop in bounds])
    bits = np.empty(contexts.size, dtype=np.bool_)
    bits[order] = np.concatenate(groups) if groups else bits
    return bits, data


def encode_groups(groups: Sequence[NDArray[np.bool_]]) -> bytes:
    """Encode bits that are already grouped by context.

    Args:
        groups: The bits of each context, none empty.
    """
    header, low, high = bytearray(), [], []
    for group in groups:
        ones = int(np.count_nonzero(group))
        header += write_varint(ones)
        rarer, inverted, k = _rule(ones, group.size)
        marks = ~group if inverted else group
        if not k:  # All gaps in unary are then the bits themselves, up to the last mark.
            high.append(marks[: marks.size - int(np.argmax(marks[::-1]))] if rarer else marks[:0])
            continue
        gaps = np.diff(np.flatnonzero(marks), prepend=-1) - 1
        low.append(_low_bits(gaps, k))
        ends = np.cumsum((gaps >> k) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1, dtype=np.bool_)
        unary[ends] = True
        high.append(unary)
    return bytes(header) + _pack(low) + _pack(high)


def decode_groups(data: bytes, sizes: Sequence[int]) -> tuple[list[NDArray[np.bool_]], bytes]:
    """Invert :func:`encode_groups`; return the bits of each context and the data after them.

    Raises:
        MaskCodeError: The data cannot be what :func:`encode_groups` wrote, with reason ``"altered"``.
    """
    rules = []
    for size in sizes:
        ones, data = read_varint(data)
        if ones > size:
            raise altered("a context holds more ones than bits")
        rules.append(_rule(ones, size))

    low, data = take_bits(data, sum(rarer * k for rarer, _, k in rules))
    total = sum(rarer for rarer, _, _ in rules)
    longest = total + sum(size >> k for size, (_, _, k) in zip(sizes, rules, strict=True))
    high = np.unpackbits(np.frombuffer(data[: -(-longest // 8)], dtype=np.uint8)).view(np.bool_)
    ends = np.flatnonzero(high)[:total]
    if ends.size < total:
        raise altered("the body ends early")
    _, data = take_bits(data, int(ends[-1]) + 1 if total else 0)

    groups, start = [], 0
    for size, (rarer, inverted, k) in zip(sizes, rules, strict=True):
        group = np.zeros(size, dtype=np.bool_)
        groups.append(group)
        own, ends = ends[:rarer], ends[rarer:]
        stop = int(own[-1]) + 1 if rarer else start
        if k:
            gaps = (np.diff(own, prepend=start - 1) - 1 << k) + _from_low_bits(low[: rarer * k], k)
            low = low[rarer * k :]
            positions = np.cumsum(gaps + 1) - 1
            if positions[-1] >= size:
                raise altered("a run of bits leaves its context")
            group[positions] = True
        else:
            if stop - start > size:
                raise altered("a run of bits leaves its context")
            group[: stop - start] = high[start:stop]
        if inverted:
            np.logical_not(group, out=group)
        start = stop
    return groups, data


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


def _low_bits(gaps: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """The low k bits of each gap, the lowest first."""
    octets = gaps.astype("<u8").view(np.uint8).reshape(-1, 8)
    return (
        np.unpackbits(octets[:, : -(-k // 8)], axis=1, count=k, bitorder="little").reshape(-1).view(np.bool_)
    )


def _from_low_bits(bits: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Invert :func:`_low_bits`."""
    octets = np.zeros((bits.size // k, 8), dtype=np.uint8)
    octets[:, : -(-k // 8)] = np.packbits(bits.reshape(-1, k), axis=1, bitorder="little")
    return octets.view("<u8").reshape(-1).astype(np.int64)


def _pack(parts: Sequence[NDArray[np.bool_]]) -> bytes:
    return np.packbits(np.concatenate(parts)).tobytes() if parts else b""


def take_bits(data: bytes, count: int) -> tuple[NDArray[np.uint8], bytes]:
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
    return bytes(_seven_bit_groups(value))


def _seven_bit_groups(value: int) -> Iterator[int]:
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
