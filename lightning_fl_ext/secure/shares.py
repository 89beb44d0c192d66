"""Shamir's secret sharing of 16-byte seeds, by pycryptodome (A. Shamir, "How to share a secret", 1979)."""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import SEED_BYTES


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
    return bytes(Shamir.combine(usable[:threshold], ssss=False))
