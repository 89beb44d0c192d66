"""The roster of a round: who takes part, with which keys, and what the vector looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.graph import Graph, threshold_of
from lightning_fl_ext.secure.keys import KEY_BYTES, digest_of
from lightning_fl_ext.secure.messages import parts


@dataclass(frozen=True)
class Terms:
    """What the server proposes for a round, before any key is made.

    Attributes:
        session: 16 random bytes that name the round.
        asked: How many clients are asked: each may use this fraction of the sums' range.
        threshold: How many must survive.
    """

    session: bytes
    asked: int
    threshold: int

    def check(self) -> None:
        """Refuse terms that would tell more than a sum of many.

        Raises:
            SecureAggregationError: Fewer than three clients, or a threshold that is no majority of them.
        """
        if self.asked < 3:
            raise SecureAggregationError(
                f"a secure round needs at least 3 clients, since of two each could compute the other's"
                f" update from the sum. {self.asked} are asked."
            )
        if not self.asked // 2 < self.threshold <= self.asked:
            raise SecureAggregationError(
                f"the threshold must be a majority of the {self.asked} clients asked: with less, a server"
                f" could unmask single updates. Got {self.threshold}."
            )


@dataclass(frozen=True)
class Announcement:
    """What a client says of itself before it masks.

    Attributes:
        client_id: Its name.
        mask_key: Public key for the masks that it shares with others.
        share_key: Public key under which others seal shares for it, and by which the server knows it.
        signature: By the client's long-lived Ed25519 key; empty if it has none.
    """

    client_id: str
    mask_key: bytes = field(repr=False)
    share_key: bytes = field(repr=False)
    signature: bytes = field(default=b"", repr=False)

    def signed_text(self, session: bytes) -> bytes:
        """Give the bytes that the signature is over."""
        return digest_of(b"announcement", session, self.client_id.encode(), self.mask_key, self.share_key)


@dataclass(frozen=True)
class Roster:
    """What all clients of a round mask by. They stand in the order of their ids.

    Attributes:
        terms: As they were proposed.
        members: The clients that announced keys, sorted by id.
        server_key: The server's public key of the round, which authenticates what clients send.
        wide: Whether the sums need two words a number.
        metrics: Names of what is summed besides the arrays.
    """

    terms: Terms
    members: tuple[Announcement, ...]
    server_key: bytes = field(repr=False)
    wide: bool = False
    metrics: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it. Every key and every sealed share is bound to it."""
        members = [part for m in self.members for part in (m.client_id.encode(), m.mask_key, m.share_key)]
        numbers = b"".join(
            n.to_bytes(8, "little") for n in (self.terms.asked, self.terms.threshold, len(self.members))
        )
        return digest_of(
            *(b"roster", self.terms.session, numbers, self.server_key, bytes([self.wide])),
            *members,
            *(name.encode() for name in self.metrics),
        )

    @property
    def signed(self) -> bool:
        """Whether all members sign, so that they can sign the list of survivors, too."""
        return all(member.signature for member in self.members)

    def neighbours(self, member: int) -> tuple[int, ...]:
        """Give the numbers of a member's neighbours."""
        return self._graph.neighbours(member)

    @cached_property
    def _graph(self) -> Graph:
        return Graph(len(self.members), self.digest)

    @cached_property
    def share_threshold(self) -> int:
        """How many holders can put a member's secrets together."""
        return threshold_of(len(self.members), self.terms.threshold)

    def holders(self, member: int) -> list[int]:
        """Give who holds shares of a member's secrets, itself among them; the first holds share 1."""
        return sorted([member, *self.neighbours(member)])

    def number(self, client_id: str) -> int:
        """Give a member's number, by its id."""
        return self._numbers[client_id]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {member.client_id: i for i, member in enumerate(self.members)}

    def name(self, member: int) -> str:
        """Give a member's id, in backticks."""
        return f"`{self.members[member].client_id}`"

    def check(self) -> None:
        """Refuse a roster that does not fit its terms.

        Raises:
            SecureAggregationError: Too few members, too many, unsorted, of one name, or of one key.
        """
        self.terms.check()
        if not self.terms.threshold <= len(self.members) <= self.terms.asked:
            raise SecureAggregationError(
                f"expected {self.terms.threshold} to {self.terms.asked} clients with keys, got"
                f" {len(self.members)}"
            )
        ids = [m.client_id for m in self.members]
        if ids != sorted(set(ids)):
            raise SecureAggregationError("expected the clients of the roster sorted by id, each once")
        keys = Counter(key for m in self.members for key in (m.mask_key, m.share_key))
        for member in self.members:
            for key in (member.mask_key, member.share_key):
                if len(key) != KEY_BYTES or keys[key] > 1:
                    raise SecureAggregationError(
                        f"the keys of client `{member.client_id}` are no new ones of its own"
                    )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as a Flower ``ConfigRecord`` holds them."""
        return {
            "session": self.terms.session,
            "asked": self.terms.asked,
            "threshold": self.terms.threshold,
            "ids": [m.client_id for m in self.members],
            "keys": b"".join(m.mask_key + m.share_key for m in self.members),
            "signatures": [m.signature for m in self.members],
            "server-key": self.server_key,
            "wide": self.wide,
            "metrics": list(self.metrics),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Roster:
        """Take what :meth:`to_dict` gave.

        Raises:
            SecureAggregationError: It is something else.
        """
        try:
            ids, signatures = data["ids"], data["signatures"]
            if not all(isinstance(signature, bytes) for signature in signatures):
                raise TypeError("signatures")
            (server_key,) = parts(data, "server-key", KEY_BYTES, 1)
            keys = parts(data, "keys", 2 * KEY_BYTES, len(ids))
            members = zip(ids, keys, signatures, strict=True)
            return cls(
                Terms(data["session"], data["asked"], data["threshold"]),
                tuple(
                    Announcement(str(i), both[:KEY_BYTES], both[KEY_BYTES:], signature)
                    for i, both, signature in members
                ),
                server_key,
                bool(data["wide"]),
                tuple(map(str, data["metrics"])),
            )
        except (KeyError, TypeError, ValueError, SecureAggregationError):
            raise SecureAggregationError("expected the roster of a round, got something else") from None
