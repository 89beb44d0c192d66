"""The frame around every code: who a payload is from and for, and a checksum that covers all of it.

A payload is a header of 28 bytes and a body. The checksum is the start of a SHA-256 over key, header, body
and the decoded content, so a body that decodes, but to something else, is caught as well.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

from lightning_fl_ext.errors import LightningFLError

__all__ = ["MaskCodeError", "MaskKey"]

VERSION = 2
_MAGIC = b"LM"
_FIELDS = struct.Struct("<2sBBIIII")  # magic, version, kind, body bytes, round, model, sender
_CHECKSUM_BYTES = 8
_HEADER_BYTES = _FIELDS.size + _CHECKSUM_BYTES

Fault = Literal[
    "format", "version", "kind", "truncated", "too-long", "round", "model", "sender", "base", "altered"
]


class MaskCodeError(LightningFLError):
    """A payload that must not be used. Attribute `reason` is one word for the record.

    ========== =============================================
    reason     the payload
    ========== =============================================
    format     is not a payload of this package
    version    was written by another version of the format
    kind       holds something else, such as θ for a mask
    truncated  was cut
    too-long   has bytes after its end
    round      belongs to another round
    model      belongs to another model
    sender     belongs to another run, client or stratum
    base       builds on another θ
    altered    does not match its checksum
    ========== =============================================
    """

    def __init__(self, reason: Fault, message: str) -> None:
        super().__init__(message)
        self.reason: Fault = reason

    def __reduce__(self) -> tuple[type[MaskCodeError], tuple[Fault, str]]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class MaskKey:
    """What both ends know about a payload before it is written: the key of its random numbers.

    Args:
        run: Seed of the run.
        round: Round, from 0 to 2^32 − 1.
        model: A name for the masked model, such as its digest. Frozen weights, the parameters' names,
            order and shapes should all enter it.
        client: The sender's id; empty for what the server sends.
        stratum: `(slot, slots)` for stratified masks: in each round, the clients that take part hold the
            slots 0 … slots − 1, one each. None: every client draws independently.

    Raises:
        ValueError: `round` or `stratum` is out of range.

    Example:
        >>> MaskKey(run=7, round=1, model="3fa9", client="site-a")
        MaskKey(run=7, round=1, model='3fa9', client='site-a', stratum=None)
    """

    run: int
    round: int
    model: str
    client: str = ""
    stratum: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.round < 2**32:
            raise ValueError(f"`round` must lie in [0, 2^32). Got {self.round}.")
        if self.stratum is not None:
            slot, slots = self.stratum
            if not 0 <= slot < slots <= 2**16:
                raise ValueError(
                    "`stratum` must be (slot, slots) with 0 <= slot < slots <= 65536. Got"
                    f" {self.stratum}. Give each client of the round one slot, from 0."
                )

    def hash(self, purpose: str) -> bytes:
        """SHA-256 over all fields and a purpose; each is length-prefixed, so no two keys run together."""
        sha = hashlib.sha256()
        stratum = "" if self.stratum is None else f"{self.stratum[0]}/{self.stratum[1]}"
        for field in (purpose, self.run, self.round, self.model, self.client, stratum):
            text = str(field).encode()
            sha.update(len(text).to_bytes(8, "little") + text)
        return sha.digest()


def wrap(kind: int, key: MaskKey, body: bytes, content: bytes) -> bytes:
    """Put a header in front of `body`; `content` is what it decodes to."""
    fields = _FIELDS.pack(_MAGIC, VERSION, kind, len(body), key.round, _model_tag(key), _sender_tag(key))
    return fields + _checksum(key, fields, body, content) + body


def unwrap(payload: bytes, key: MaskKey) -> tuple[int, bytes]:
    """Check a payload's header against `key`; return its kind and its body.

    Raises:
        MaskCodeError: The payload is damaged on the outside, or meant for something else.
    """
    if len(payload) < _HEADER_BYTES:
        raise MaskCodeError(
            "truncated", f"expected at least a header of {_HEADER_BYTES} bytes, got {len(payload)} bytes"
        )
    magic, version, kind, size, round_, model, sender = _FIELDS.unpack_from(payload)
    body = payload[_HEADER_BYTES:]
    if magic != _MAGIC:
        raise MaskCodeError("format", f"expected a payload that starts with {_MAGIC!r}, got {magic!r}")
    if version != VERSION:
        raise MaskCodeError(
            "version",
            f"expected format version {VERSION}, got {version}: install the same version of this package"
            " on server and clients",
        )
    if len(body) != size:
        raise MaskCodeError(
            "truncated" if len(body) < size else "too-long",
            f"expected a body of {size} bytes, got {len(body)}",
        )
    if round_ != key.round:
        raise MaskCodeError("round", f"expected a payload for round {key.round}, got one for round {round_}")
    if model != _model_tag(key):
        raise MaskCodeError(
            "model", f"the payload belongs to another model than {key.model!r}: masked parameters must agree"
        )
    if sender != _sender_tag(key):
        raise MaskCodeError(
            "sender",
            f"the payload was not written for run {key.run}, client {key.client!r}, stratum {key.stratum}",
        )
    return kind, body


def verify(payload: bytes, key: MaskKey, content: bytes) -> None:
    """Check the `content` decoded from an unsealed payload against its checksum.

    Raises:
        MaskCodeError: They do not match, with reason ``"altered"``.
    """
    fields, rest = payload[: _FIELDS.size], payload[_FIELDS.size :]
    if rest[:_CHECKSUM_BYTES] != _checksum(key, fields, rest[_CHECKSUM_BYTES:], content):
        raise altered("the checksum of what was decoded does not match")


def altered(what: str) -> MaskCodeError:
    """The error for a body that is inconsistent in itself."""
    return MaskCodeError(
        "altered",
        f"{what}: the payload was altered on its way, or the two ends disagree on the server's θ",
    )


def _model_tag(key: MaskKey) -> int:
    return _tag(MaskKey(run=0, round=0, model=key.model).hash("model"))


def _sender_tag(key: MaskKey) -> int:
    return _tag(key.hash("sender"))


def _tag(sha: bytes) -> int:
    return int.from_bytes(sha[:4], "little")


def _checksum(key: MaskKey, *parts: bytes) -> bytes:
    sha = hashlib.sha256(key.hash("checksum"))
    for part in parts:
        sha.update(len(part).to_bytes(8, "little") + part)
    return sha.digest()[:_CHECKSUM_BYTES]
