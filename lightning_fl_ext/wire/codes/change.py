"""θ for whoever holds an earlier θ: what a round of masks made of it, and no more.

Every payload names the θ that it builds on by a digest, and its checksum is over the θ that it decodes to. So
whoever has that base gets the server's θ, to the bit, and whoever has another is told so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.wire.codes.flips import MOST_CLIENTS, decode_sum, encode_sum
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey, altered, unwrap, verify, wrap
from lightning_fl_ext.wire.codes.masks import MASK_CODES
from lightning_fl_ext.wire.codes.rice import decode_bits, encode_bits, read_varint, write_varint

__all__ = [
    "CountedRound",
    "decode_change",
    "encode_counts_change",
    "encode_relay",
    "encode_same",
    "encode_sum_change",
    "theta_digest",
]

_SUM, _RELAY, _SAME, _COUNTS = 17, 18, 19, 20
KINDS = {"sum": _SUM, "relay": _RELAY, "same": _SAME, "counts": _COUNTS}
_DIGEST_BYTES = 16
_ADDED, _RESET = 0, 1


@dataclass(frozen=True)
class CountedRound:
    """Whose masks a round counted.

    Attributes:
        server_round: The round.
        clients: Ids of the clients, sorted and distinct.
        slots: Each one's slot and the number of slots, if the masks are stratified; else empty.
    """

    server_round: int
    clients: tuple[str, ...]
    slots: tuple[tuple[int, int], ...] = ()

    def keys(self, key: MaskKey) -> list[MaskKey]:
        """Give the clients' keys, in the run and for the model of another key."""
        strata = self.slots or (None,) * len(self.clients)
        return [
            replace(key, round=self.server_round, client=client, stratum=stratum)
            for client, stratum in zip(self.clients, strata, strict=True)
        ]


def theta_digest(theta: ThetaCounts) -> bytes:
    """Name a θ: 16 bytes of SHA-256 over its counts and trials.

    Example:
        >>> theta_digest(ThetaCounts(np.array([1, 2], dtype=np.uint16), trials=3)).hex()[:8]
        '94bf8d0a'
    """
    sha = hashlib.sha256(theta.trials.to_bytes(8, "little"))
    sha.update(_content(theta))
    return sha.digest()[:_DIGEST_BYTES]


def base_of(payload: bytes, key: MaskKey) -> bytes | None:
    """Give the digest of the θ that a payload builds on; None for one that stands alone.

    Raises:
        MaskCodeError: Its header is damaged, or of another round, run or model.
    """
    kind, body = unwrap(payload, key)
    return _base(body)[0] if kind in KINDS.values() else None


def encode_same(theta: ThetaCounts, key: MaskKey) -> bytes:
    """Write that θ is the one that the other end holds."""
    return wrap(_SAME, key, theta_digest(theta), _content(theta))


def encode_counts_change(theta: ThetaCounts, base: ThetaCounts, key: MaskKey) -> bytes | None:
    """Write θ for whoever holds an earlier one: the counts, each in the context of the one before.

    That takes more than :func:`encode_sum_change`, and needs no masks that can be guessed.

    Returns:
        The payload; None if the two are of other sizes, or their counts too many to be contexts.
    """
    bits = theta.trials.bit_length()
    if theta.counts.shape != base.counts.shape or (base.trials + 1) << bits > 2**16:
        return None
    body = theta_digest(base) + write_varint(theta.trials)
    for level in reversed(range(bits)):
        above = theta.counts >> np.uint16(level)
        digits = (above & np.uint16(1)).astype(np.bool_)
        body += encode_bits(digits, _contexts(base, bits, above >> np.uint16(1)))
    return wrap(_COUNTS, key, body, _content(theta))


def encode_sum_change(
    theta: ThetaCounts, base: ThetaCounts, counted: CountedRound, key: MaskKey
) -> bytes | None:
    """Write θ for whoever holds the one before, as the sum of the flips of the masks in between.

    Args:
        theta: The θ to write.
        base: The one that the masks were drawn from.
        counted: Whose masks made the one of the other.
        key: Run, round and model; without a client.

    Returns:
        The payload; None if θ is no such sum, or one of more than 256 masks.

    Example:
        >>> from lightning_fl_ext.wire.codes import sample_mask, to_fixed_point
        >>> base = ThetaCounts(np.full(10_000, 4, dtype=np.uint16), trials=10)
        >>> key, counted = MaskKey(run=7, round=2, model="3fa9"), CountedRound(1, ("a", "b", "c"))
        >>> local = to_fixed_point(np.full(10_000, 0.42))  # each client moved by 0.02
        >>> opened = sum(sample_mask(local, k).astype(np.uint16) for k in counted.keys(key))
        >>> payload = encode_sum_change(ThetaCounts(opened, trials=3), base, counted, key)
        >>> 8 * len(payload) / 10_000 < 0.4
        True
        >>> bool((decode_change(payload, base, key).counts == opened).all())
        True
    """
    masks = len(counted.clients)
    rule = _rule(theta, base, masks)
    if rule is None:
        return None
    total = (theta.counts.astype(np.int64) - _offset(rule, theta, base, masks)).astype(np.uint16)
    head = _head(theta, base, counted, rule)
    body = head + encode_sum(total, base.fixed_point(), counted.keys(key))
    return wrap(_SUM, key, body, _content(theta))


def encode_relay(
    theta: ThetaCounts, base: ThetaCounts, counted: CountedRound, payloads: Sequence[bytes], key: MaskKey
) -> bytes | None:
    """Write θ for whoever holds the one before, as the masks in between, each as its client wrote it.

    Args:
        theta: See :func:`encode_sum_change`.
        base: See :func:`encode_sum_change`.
        counted: Whose masks.
        payloads: Theirs, in that order.
        key: Run, round and model; without a client.

    Returns:
        The payload; None if θ is no sum of so many masks, or of too many.
    """
    rule = _rule(theta, base, len(counted.clients))
    if rule is None:
        return None
    body = _head(theta, base, counted, rule)
    for payload, sender in zip(payloads, counted.keys(key), strict=True):
        kind, mask = unwrap(payload, sender)
        body += bytes([kind]) + write_varint(len(mask)) + mask
    return wrap(_RELAY, key, body, _content(theta))


def decode_change(payload: bytes, base: ThetaCounts, key: MaskKey) -> ThetaCounts:
    """Read θ, holding the one that it builds on.

    Args:
        payload: From one of the functions above.
        base: The θ whose digest :func:`base_of` gives.
        key: The server's key.

    Raises:
        MaskCodeError: The payload is cut, altered, too long, of another version, or written for another
            round, model, run or base; `reason` says which.
    """
    kind, body = unwrap(payload, key)
    if kind not in KINDS.values():
        raise MaskCodeError("kind", f"expected a change of θ (kinds {[*KINDS.values()]}), got kind {kind}")
    named, body = _base(body)
    if named != (own := theta_digest(base)):
        raise MaskCodeError("base", f"expected a change of the θ {own.hex()}, got one of {named.hex()}")
    if kind == _SAME:
        theta = base
    elif kind == _COUNTS:
        theta, body = _decode_counts(body, base)
    else:
        theta, body = _decode(kind, body, base, key)
    if body:
        raise altered("the body goes on after its end")
    verify(payload, key, _content(theta))
    return theta


def _decode_counts(body: bytes, base: ThetaCounts) -> tuple[ThetaCounts, bytes]:
    trials, body = read_varint(body)
    bits = trials.bit_length()
    if not trials or (base.trials + 1) << bits > 2**16:
        raise altered(f"θ out of {trials} trials, on one of {base.trials}")
    counts = np.zeros(base.counts.size, dtype=np.uint16)
    for _ in range(bits):
        digits, body = decode_bits(body, _contexts(base, bits, counts))
        counts = counts << np.uint16(1) | digits
    if counts.size and counts.max() > trials:
        raise altered(f"a count exceeds {trials} trials")
    return ThetaCounts(counts, trials), body


def _contexts(base: ThetaCounts, bits: int, above: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The context of a digit: the count before, and the digits above, which say at which level it is too."""
    return (base.counts << np.uint16(bits)) + above


def _decode(kind: int, body: bytes, base: ThetaCounts, key: MaskKey) -> tuple[ThetaCounts, bytes]:
    counted, body = _read_counted(body)
    trials, body = read_varint(body)
    rule, body = read_varint(body)
    keys = counted.keys(key)
    if not 1 <= trials < 2**16 or rule not in (_ADDED, _RESET) or not 1 <= len(keys) <= MOST_CLIENTS:
        raise altered(f"θ out of {trials} trials, {len(keys)} masks, by rule {rule}")
    public = base.fixed_point()
    if kind == _SUM:
        total, body = decode_sum(body, public, keys)
    else:
        total = np.zeros(public.size, dtype=np.uint16)
        for sender in keys:
            mask, body = _read_mask(body, public, sender)
            total += mask
    counts = total.astype(np.int64) + _offset(rule, ThetaCounts(total[:0], trials), base, len(keys))
    if counts.size and not 0 <= counts.min() <= counts.max() <= trials:
        raise altered(f"a count lies outside of {trials} trials")
    return ThetaCounts(counts.astype(np.uint16), trials), body


def _read_mask(body: bytes, public: NDArray[np.uint16], sender: MaskKey) -> tuple[NDArray[np.bool_], bytes]:
    if not body:
        raise altered("the body ends early")
    length, rest = read_varint(body[1:])
    if len(rest) < length:
        raise altered("the body ends early")
    for code in MASK_CODES.values():
        if code.kind == body[0]:
            return code.decode(rest[:length], public, sender), rest[length:]
    raise altered(f"a mask of kind {body[0]}")


def _rule(theta: ThetaCounts, base: ThetaCounts, masks: int) -> int | None:
    """Tell whether the masks were added to a prior alike for all, or to the base's counts; None: neither."""
    if theta.counts.shape != base.counts.shape or not 1 <= masks <= MOST_CLIENTS:
        return None
    for rule in (_RESET, _ADDED):
        total = theta.counts.astype(np.int64) - _offset(rule, theta, base, masks)
        fits = not total.size or 0 <= total.min() <= total.max() <= masks
        if fits and (rule == _RESET or theta.trials == base.trials + masks):
            return rule
    return None


def _offset(rule: int, theta: ThetaCounts, base: ThetaCounts, masks: int) -> NDArray[np.int64] | int:
    """What is added to a sum of masks: the counts before, or half of the trials that are no masks."""
    return base.counts.astype(np.int64) if rule == _ADDED else (theta.trials - masks) // 2


def _head(theta: ThetaCounts, base: ThetaCounts, counted: CountedRound, rule: int) -> bytes:
    return theta_digest(base) + _write_counted(counted) + write_varint(theta.trials) + write_varint(rule)


def _base(body: bytes) -> tuple[bytes, bytes]:
    if len(body) < _DIGEST_BYTES:
        raise altered("the body ends early")
    return body[:_DIGEST_BYTES], body[_DIGEST_BYTES:]


def _write_counted(counted: CountedRound) -> bytes:
    data = write_varint(counted.server_round) + write_varint(len(counted.clients))
    for client in counted.clients:
        data += write_varint(len(name := client.encode())) + name
    data += write_varint(counted.slots[0][1] if counted.slots else 0)
    return data + b"".join(write_varint(slot) for slot, _ in counted.slots)


def _read_counted(data: bytes) -> tuple[CountedRound, bytes]:
    server_round, data = read_varint(data)
    count, data = read_varint(data)
    clients: list[str] = []
    for _ in range(min(count, len(data) + 1)):
        length, data = read_varint(data)
        try:
            clients.append(data[:length].decode())
        except UnicodeDecodeError:
            raise altered("a client's id is no text") from None
        if len(data) < length or clients[-2:-1] > clients[-1:]:
            raise altered("the clients' ids are cut, or not in order")
        data = data[length:]
    slots, data = read_varint(data)
    strata = []
    for _ in clients if slots else ():
        slot, data = read_varint(data)
        strata.append((slot, slots))
    if server_round >= 2**32 or len(set(clients)) < count or any(s >= n or n > 2**16 for s, n in strata):
        raise altered("the list of clients is none")
    return CountedRound(server_round, tuple(clients), tuple(strata)), data


def _content(theta: ThetaCounts) -> bytes:
    return theta.counts.astype("<u2").tobytes()
