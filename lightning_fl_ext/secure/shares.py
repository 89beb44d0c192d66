"""Shamir's secret sharing of 16-byte seeds (A. Shamir, "How to share a secret", 1979).

`pycryptodome` makes the shares. They are put together here, since that takes its general arithmetic
milliseconds a seed: the weights of the holders are computed once for all seeds that the same ones give. No
secret is at stake then, and whoever puts a seed together checks it against what its owner made public.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from Crypto.Protocol.SecretSharing import Shamir

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import SEED_BYTES

_FIELD = 2**128 + 0b10000111
"""Numbers stand for polynomials over GF(2), modulo 1 + x + x^2 + x^7 + x^128."""


def split(seed: bytes, threshold: int, holders: int) -> list[bytes]:
    """Split a seed into shares, of which ``threshold`` give it back and fewer tell nothing.

    Args:
        seed: 16 bytes.
        threshold: At least 2.
        holders: How many shares to make.

    Returns:
        Share ``i`` of the list is that of holder ``i + 1``: the seed itself is the one at 0.

    Example:
        >>> shares = split(b"sixteen bytes ..", 2, 3)
        >>> combine({1: shares[0], 3: shares[2]}, 2)
        b'sixteen bytes ..'
    """
    if not 2 <= threshold <= holders:
        raise SecureAggregationError(f"expected a threshold from 2 to {holders} holders, got {threshold}")
    return [share for _, share in Shamir.split(threshold, holders, seed, ssss=False)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Put a seed together again.

    Args:
        shares: By holder, from 1. The first ``threshold`` are used.
        threshold: What it was split with.

    Raises:
        SecureAggregationError: There are too few.
    """
    usable = [(i, share) for i, share in sorted(shares.items()) if i > 0 and len(share) == SEED_BYTES]
    if len(usable) < threshold:
        raise SecureAggregationError(f"expected {threshold} shares, got {len(usable)}")
    used = usable[:threshold]
    seed = 0
    for (_, share), weight in zip(used, _weights(tuple(i for i, _ in used)), strict=True):
        seed ^= _product(int.from_bytes(share, "big"), weight)
    return seed.to_bytes(SEED_BYTES, "big")


@lru_cache(256)
def _weights(holders: tuple[int, ...]) -> list[int]:
    """Compute what each share counts for: Lagrange's polynomials at 0."""
    weights = []
    for j in holders:
        above, below = 1, 1
        for m in holders:
            if m != j:
                above, below = _product(above, m), _product(below, j ^ m)
        weights.append(_product(above, _inverse(below)))
    return weights


def _product(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = a << 1, b >> 1
    return _reduced(product)


def _inverse(a: int) -> int:
    """Invert an element other than 0, by Euclid's algorithm."""
    rest, other, factor, other_factor = a, _FIELD, 1, 0
    while rest != 1:
        shift = other.bit_length() - rest.bit_length()
        if shift < 0:
            rest, other, factor, other_factor, shift = other, rest, other_factor, factor, -shift
        other, other_factor = other ^ rest << shift, other_factor ^ factor << shift
    return _reduced(factor)


def _reduced(product: int) -> int:
    while (extra := product.bit_length() - 129) >= 0:
        product ^= _FIELD << extra
    return product
