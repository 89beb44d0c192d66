"""The server's θ as bytes, and back: counts, entropy-coded, in a message that stands on its own.

A count is coded one binary digit after the other, the highest first, each in the context of those before
it: a tree of yes-or-no questions that holds the distribution of the counts, whatever it is. The counts of K
clients cost their entropy, at most log2(K + 1) bits, and a few bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey, altered, seal, unseal, verify
from lightning_fl_ext.wire.codes.rice import decode_groups, encode_groups, read_varint, write_varint

__all__ = ["decode_theta", "encode_theta"]

_KIND = 16


def encode_theta(theta: ThetaCounts, key: MaskKey) -> bytes:
    """Write the θ that the server sends in a round.

    Args:
        theta: The counts of all masked parameters.
        key: Run, round and model; without a client, since all clients get the same bytes.

    Returns:
        The payload. It needs no earlier one, so a client may have missed any number of rounds.

    Example:
        >>> counts = np.random.default_rng(0).binomial(10, 0.5, 10_000).astype(np.uint16)
        >>> key = MaskKey(run=7, round=1, model="3fa9")
        >>> payload = encode_theta(ThetaCounts(counts, trials=10), key)
        >>> 8 * len(payload) / 10_000 < 2.85  # their entropy is 2.7 bits; packed, they would cost 4
        True
        >>> bool((decode_theta(payload, 10_000, key).counts == counts).all())
        True
    """
    body = write_varint(theta.trials)
    nodes = [theta.counts] if theta.counts.size else []
    for level in reversed(range(theta.trials.bit_length())):
        digits = [(counts & np.uint16(1 << level)).astype(np.bool_) for counts in nodes]
        body += encode_groups(digits)
        halves = [c[places] for c, d in zip(nodes, digits, strict=True) for places in _split(d)]
        nodes = [half for half in halves if half.size]
    return seal(_KIND, key, body, _content(theta))


def decode_theta(payload: bytes, size: int, key: MaskKey) -> ThetaCounts:
    """Invert :func:`encode_theta`.

    Args:
        payload: What :func:`encode_theta` returned on the server.
        size: Number of masked parameters.
        key: The server's key.

    Raises:
        MaskCodeError: The payload is cut, altered, too long, of another version, or written for another
            round, model or run; `reason` says which.
    """
    kind, body = unseal(payload, key)
    if kind != _KIND:
        raise MaskCodeError("kind", f"expected θ (kind {_KIND}), got kind {kind}")
    trials, body = read_varint(body)
    if not 1 <= trials < 2**16:
        raise altered(f"θ out of {trials} trials")
    sizes, levels = [size] if size else [], []
    for _ in range(trials.bit_length()):
        digits, body = decode_groups(body, sizes)
        levels.append(digits)
        ones = [int(np.count_nonzero(d)) for d in digits]
        halves = [half for n, o in zip(sizes, ones, strict=True) for half in (n - o, o)]
        sizes = [half for half in halves if half]
    if body:
        raise altered("the body goes on after its end")
    counts = _assemble(levels, size)
    if size and counts.max() > trials:
        raise altered(f"a count exceeds {trials} trials")
    theta = ThetaCounts(counts, trials)
    verify(payload, key, _content(theta))
    return theta


def _assemble(levels: list[list[NDArray[np.bool_]]], size: int) -> NDArray[np.uint16]:
    """Put the counts together, from the leaves of the tree upwards: each node's halves by its digits.

    A tree of bits in which each level is split by the one before is a wavelet tree (Grossi, Gupta, Vitter,
    "High-order entropy-compressed text indexes", SODA 2003).
    """
    below: list[NDArray[np.uint16]] = []
    for weight, digits in enumerate(reversed(levels)):
        halves, nodes = iter(below), []
        for d in digits:
            counts = d.astype(np.uint16) << np.uint16(weight)
            if weight:
                for places in _split(d):
                    if places.size:
                        counts[places] += next(halves)
            nodes.append(counts)
        below = nodes
    return below[0] if size else np.zeros(0, dtype=np.uint16)


def _split(digits: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the zeros and where the ones are: far quicker to index by than the digits themselves."""
    return np.flatnonzero(~digits), np.flatnonzero(digits)


def _content(theta: ThetaCounts) -> bytes:
    return theta.counts.astype("<u2").tobytes()
