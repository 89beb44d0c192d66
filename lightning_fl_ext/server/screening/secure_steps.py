"""What a client's answer to a later step of a secure round may hold, checked before it is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from lightning_fl_ext.secure import Announcement, SecureAggregationError
from lightning_fl_ext.secure.keys import agree, private_key
from lightning_fl_ext.server.screening.content import screen_size
from lightning_fl_ext.server.screening.limits import ARRAY_HEADER, ExpectedContent, Limits
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.wire import from_record
from lightning_fl_ext.wire.secure_record import MASKED
from lightning_fl_ext.wire.typed_records import records_of

BYTES_OF_MEMBER = 128
"""Of keys, shares and numbers that an answer may hold for each client of the round."""

SIGNATURE_BYTES = 64
"""Of Ed25519; a client without a key of its own gives none."""

DIGEST_BYTES = 32


def screen_answer(content: RecordDict, members: int, words: int = 0) -> None:
    """Refuse an answer that holds more than the step warrants, without decoding anything.

    Args:
        content: Of the answer.
        members: Clients of the round: an answer may say something of each.
        words: Length of the masked vector, if one is asked for.

    Raises:
        Rejected: It goes beyond a limit.

    Example:
        >>> screen_answer(RecordDict({"secure": ConfigRecord({"sealed": b"x" * 5000})}), members=5)
        Traceback (most recent call last):
        ...
        lightning_fl_ext.server.screening.rejection.Rejected: over-limit, `sealed`: expected at most 4096
        characters or bytes (`Limits.text`), got 5000
    """
    limits = Limits(
        arrays=0,
        entries=Limits.entries + 4 * members,
        text=max(Limits.text, BYTES_OF_MEMBER * members),
        extra_bytes=Limits.extra_bytes + BYTES_OF_MEMBER * members,
    )
    size = 8 * words + ARRAY_HEADER if words else 0
    screen_size(content, limits, ExpectedContent([MASKED] if words else [], size))


def screen_commitment(record: ConfigRecord) -> None:
    """Refuse shares that come without what their sum is checked by.

    A client that could leave it out would have its neighbours mask with one who does not count as a sharer.

    Raises:
        Rejected: There is none.
    """
    found = record.get("commitment")
    if not isinstance(found, bytes) or len(found) != DIGEST_BYTES:
        what = f"{DIGEST_BYTES} bytes that shares are checked by"
        raise Rejected(Reason.SECURE, "commitment", what, "something else")


def masked_words(content: RecordDict, size: int) -> NDArray[np.uint64]:
    """Read a masked vector, having compared what it says of itself.

    Args:
        content: Of a bounded answer.
        size: Its number of words.

    Raises:
        Rejected: It is another vector, or none.
        PayloadError: It is not what it says.
    """
    record = records_of(content, ArrayRecord).get(MASKED)
    packed = record.get(MASKED) if record is not None and len(record) == 1 else None
    if packed is not None and tuple(packed.shape) == (size,) and packed.dtype == "uint64":
        words = from_record(ArrayRecord({MASKED: packed}))[MASKED]
        if words.dtype.str == "<u8":
            return words
    raise Rejected(Reason.SECURE, MASKED, f"a masked vector of {size} words", "something else")


def screen_keys(announcement: Announcement) -> None:
    """Refuse keys that no other client could agree on a secret with.

    All others would have to refuse a roster that holds one, which would end the round for everybody.

    Raises:
        Rejected: One is no public key, or the signature is none.
    """
    own = private_key(b"")
    for name in ("mask-key", "share-key"):
        try:
            agree(own, getattr(announcement, name.replace("-", "_")), "check")
        except SecureAggregationError:
            raise Rejected(Reason.SECURE, name, "a public key of X25519", "other bytes") from None
    if len(announcement.signature) not in (0, SIGNATURE_BYTES):
        got = f"{len(announcement.signature)} bytes"
        raise Rejected(Reason.SECURE, "signature", f"{SIGNATURE_BYTES} bytes or none", got)


def with_repeated_keys(announcements: Collection[Announcement]) -> set[str]:
    """Give the ids of the clients of which a key is not theirs alone, or serves for both.

    Example:
        >>> with_repeated_keys([Announcement("a", b"1", b"2"), Announcement("b", b"3", b"2")]) == {"a", "b"}
        True
    """
    times = Counter(key for of in announcements for key in (of.mask_key, of.share_key))
    return {of.client_id for of in announcements if max(times[of.mask_key], times[of.share_key]) > 1}
