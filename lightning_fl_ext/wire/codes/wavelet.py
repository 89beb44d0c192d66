"""Small integers, one bit of each at a time, the top ones first, in the context of the bits above.

A tree of bits in which each level is split by the one before is a wavelet tree (Grossi, Gupta, Vitter,
"High-order entropy-compressed text indexes", SODA 2003). The bits of a node go by the Golomb–Rice code, so
the whole costs about the entropy of the integers' distribution, which need not be known beforehand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.rice import decode_groups, encode_groups

Integers = NDArray[np.uint16]


def encode_integers(values: Integers, bits: int) -> bytes:
    """Encode integers.

    Args:
        values: Below ``2**bits``, shape (n,).
        bits: At most 16.

    Example:
        >>> data = encode_integers(np.array([3, 0, 3, 3, 1], np.uint16), 2)
        >>> decode_integers(data + b"rest", 5, 2)
        (array([3, 0, 3, 3, 1], dtype=uint16), b'rest')
    """
    data = b""
    nodes = [values] if values.size else []
    for level in reversed(range(bits)):
        digits = [(node & np.uint16(1 << level)).astype(np.bool_) for node in nodes]
        data += encode_groups(digits)
        halves = [node[places] for node, d in zip(nodes, digits, strict=True) for places in _split(d)]
        nodes = [half for half in halves if half.size]
    return data


def decode_integers(data: bytes, size: int, bits: int) -> tuple[Integers, bytes]:
    """Invert :func:`encode_integers`; return ``size`` integers and the data after them.

    Raises:
        MaskCodeError: The data cannot be what :func:`encode_integers` wrote, with reason ``"altered"``.
    """
    sizes, levels = [size] if size else [], []
    for _ in range(bits):
        digits, data = decode_groups(data, sizes)
        levels.append(digits)
        ones = [int(np.count_nonzero(d)) for d in digits]
        halves = [half for n, o in zip(sizes, ones, strict=True) for half in (n - o, o)]
        sizes = [half for half in halves if half]
    return _assemble(levels) if size else np.zeros(0, dtype=np.uint16), data


def _assemble(levels: list[list[NDArray[np.bool_]]]) -> Integers:
    """Put the integers together, from the leaves of the tree upwards: each node's halves by its digits."""
    below: list[Integers] = []
    for weight, digits in enumerate(reversed(levels)):
        halves, nodes = iter(below), []
        for d in digits:
            values = d.astype(np.uint16) << np.uint16(weight)
            if weight:
                for places in _split(d):
                    if places.size:
                        values[places] += next(halves)
            nodes.append(values)
        below = nodes
    return below[0]


def _split(digits: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the zeros and where the ones are: far quicker to index by than the digits themselves."""
    return np.flatnonzero(~digits), np.flatnonzero(digits)
