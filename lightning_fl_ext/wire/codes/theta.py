"""The server's θ as bytes, and back: counts, entropy-coded, in a message that stands on its own.

A count is coded one binary digit after the other, the highest first, each in the context of those before
it: a tree of yes-or-no questions that holds the distribution of the counts, whatever it is. The counts of K
clients cost their entropy, at most log2(K + 1) bits, and a few bytes.
"""

from __future__ import annotations

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey, altered, unwrap, verify, wrap
from lightning_fl_ext.wire.codes.rice import read_varint, write_varint
from lightning_fl_ext.wire.codes.wavelet import decode_integers, encode_integers

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
        >>> import numpy as np
        >>> counts = np.random.default_rng(0).binomial(10, 0.5, 10_000).astype(np.uint16)
        >>> key = MaskKey(run=7, round=1, model="3fa9")
        >>> payload = encode_theta(ThetaCounts(counts, trials=10), key)
        >>> 8 * len(payload) / 10_000 < 2.85  # their entropy is 2.7 bits; packed, they would cost 4
        True
        >>> bool((decode_theta(payload, 10_000, key).counts == counts).all())
        True
    """
    body = write_varint(theta.trials) + encode_integers(theta.counts, theta.trials.bit_length())
    return wrap(_KIND, key, body, _content(theta))


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
    kind, body = unwrap(payload, key)
    if kind != _KIND:
        raise MaskCodeError("kind", f"expected θ (kind {_KIND}), got kind {kind}")
    trials, body = read_varint(body)
    if not 1 <= trials < 2**16:
        raise altered(f"θ out of {trials} trials")
    counts, body = decode_integers(body, size, trials.bit_length())
    if body:
        raise altered("the body goes on after its end")
    if size and counts.max() > trials:
        raise altered(f"a count exceeds {trials} trials")
    theta = ThetaCounts(counts, trials)
    verify(payload, key, _content(theta))
    return theta


def _content(theta: ThetaCounts) -> bytes:
    return theta.counts.astype("<u2").tobytes()
