"""The server's side of the protocol: pass sealed shares on, add masked vectors, unmask the sum, once.

It never holds what would unmask a single vector: clients give either the share of a vector's own mask or the
share of its key, and a majority of them is needed for either.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import (
    SEALED_BYTES,
    SEED_BYTES,
    agree,
    derive,
    digest_of,
    new_seed,
    private_key,
    public_key,
    verify,
)
from lightning_fl_ext.secure.masks import Words, mask
from lightning_fl_ext.secure.messages import Plain, joined, members, message_fields, parts
from lightning_fl_ext.secure.roster import Announcement, Roster, Terms
from lightning_fl_ext.secure.shares import combine
from lightning_fl_ext.secure.survivors import SIGNATURE_BYTES, joined_signatures


class SecureServer:
    """One round of the server. Vectors are added as they come; none is kept.

    Args:
        terms: As they were told to the clients.
        announcements: Of the clients that answered.
        wide: Whether the sums need two words a number.
        metrics: Names of what is summed besides the arrays.

    Raises:
        SecureAggregationError: There are too few, or their keys are no new ones of their own.

    Attributes:
        roster: To be sent to all of them.
        sharers: Numbers of those whose shares came.
        survivors: Numbers of those whose masked vector is in the sum.
    """

    def __init__(
        self,
        terms: Terms,
        announcements: Iterable[Announcement],
        wide: bool = False,
        metrics: Iterable[str] = (),
    ) -> None:
        members = tuple(sorted(announcements, key=lambda m: m.client_id))
        seed = new_seed()
        self._key = private_key(seed)
        self._tag_secrets: dict[int, bytes] = {}
        self.roster = Roster(terms, members, public_key(seed), wide, tuple(metrics))
        self.roster.check()
        self.sharers: list[int] = []
        self.survivors: list[int] = []
        self._boxes: dict[int, dict[int, bytes]] = {i: {} for i in range(len(members))}
        self._commitments: dict[int, bytes] = {}
        self._total: Words | None = None
        self._self_shares: dict[int, dict[int, bytes]] = {}
        self._key_shares: dict[int, dict[int, bytes]] = {}
        self._answered: set[int] = set()
        self._requested = False
        self._signatures: dict[int, bytes] = {}

    def take_shares(self, member: int, message: Mapping[str, Any]) -> None:
        """Take a client's sealed shares.

        Raises:
            SecureAggregationError: They are not what this client sent in this round, or came already.
        """
        self._check(member, "share", message, self.sharers)
        neighbours = self.roster.neighbours(member)
        sealed = parts(message, "sealed", SEALED_BYTES, len(neighbours))
        for j, box in zip(neighbours, sealed, strict=True):
            self._boxes[j][member] = box
        self._commitments[member] = message["commitment"]
        self.sharers.append(member)

    def mailbox(self, member: int) -> Plain:
        """Give the sealed shares that came for a client."""
        boxes = dict(sorted(self._boxes[member].items()))
        return {"from": list(boxes), "sealed": joined(boxes.values(), SEALED_BYTES)}

    def take_masked(self, member: int, message: Mapping[str, Any], words: Words) -> None:
        """Add a client's masked vector.

        Raises:
            SecureAggregationError: It is not what this client sent in this round, came already, or came after
                the sum was closed.
        """
        if self._requested or member not in self.sharers:
            raise SecureAggregationError("its masked update came too late, or without shares before")
        self._check(member, "masked", message, self.survivors, words)
        if self._total is None:
            self._total = np.array(words, dtype=np.uint64)
        else:
            if self._total.shape != words.shape:
                raise SecureAggregationError(f"expected {self._total.size} words, got {words.size}")
            np.add(self._total, words, out=self._total)
        self.survivors.append(member)

    def request(self) -> Plain:
        """Close the sum, and give what asks the survivors for their shares.

        Raises:
            SecureAggregationError: Fewer survive than the threshold says. Nothing is asked of anybody.
        """
        self._require(len(self.survivors), "masked updates")
        self._requested = True
        dropped = sorted(set(self.sharers) - set(self.survivors))
        return {"survivors": sorted(self.survivors), "dropped": dropped}

    def take_confirmation(self, member: int, message: Mapping[str, Any]) -> None:
        """Take a survivor's signature of the list that `request` gave. Only other clients can check it.

        Raises:
            SecureAggregationError: It is not what this client sent in this round, or came already.
        """
        if member not in self.survivors:
            raise SecureAggregationError("its masked update is not in the sum")
        self._check(member, "confirm", message, self._signatures)
        (self._signatures[member],) = parts(message, "list-signature", SIGNATURE_BYTES, 1)

    def signed_request(self) -> Plain:
        """Give what `request` gave, signed.

        Raises:
            SecureAggregationError: Fewer have signed than the threshold says.
        """
        self._require(len(self._signatures), "signatures of the list of survivors")
        return {**self.request(), **joined_signatures(self._signatures)}

    def take_unmask(self, member: int, message: Mapping[str, Any]) -> None:
        """Take the shares that a survivor gives.

        Raises:
            SecureAggregationError: They are not what this client sent in this round, or came already.
        """
        if member not in self.survivors:
            raise SecureAggregationError("its masked update is not in the sum")
        self._check(member, "unmask", message, self._answered)
        for kind, names, values in (
            (self._self_shares, "survivors", "self-shares"),
            (self._key_shares, "dropped", "key-shares"),
        ):
            of = members(message, names)
            for j, share in zip(of, parts(message, values, SEED_BYTES, len(of)), strict=True):
                if j in self._boxes and member in (holders := self.roster.holders(j)):
                    kind.setdefault(j, {})[holders.index(member) + 1] = share
        self._answered.add(member)

    def unmasked(self) -> Words:
        """Take the masks off the sum, and give it. The round is then over.

        Raises:
            SecureAggregationError: There are too few shares, or they do not fit.
        """
        self._require(len(self._answered), "answers to the last request")
        roster, total = self.roster, self._total
        assert total is not None
        t, plus, minus = roster.share_threshold, list[bytes](), list[bytes]()
        for j in self.survivors:
            seed = self._combined("own mask", self._self_shares, j, t)
            if digest_of(b"self", roster.digest, seed) != self._commitments[j]:
                raise SecureAggregationError(f"the shares of client {roster.name(j)}'s own mask do not fit")
            minus.append(derive(seed, "self", roster.digest))
        for i in sorted(set(self.sharers) - set(self.survivors)):
            present = [j for j in roster.neighbours(i) if j in self.survivors]
            if not present:
                continue
            seed = self._combined("key", self._key_shares, i, t)
            if public_key(seed) != roster.members[i].mask_key:
                raise SecureAggregationError(f"the shares of client {roster.name(i)}'s key do not fit")
            dropped_key = private_key(seed)
            for j in present:
                pair = agree(dropped_key, roster.members[j].mask_key, "mask", roster.digest)
                (minus if j < i else plus).append(pair)
        mask(total, plus, minus)
        self._total = None
        return total

    def _combined(self, kind: str, shares: Mapping[int, Mapping[int, bytes]], member: int, t: int) -> bytes:
        try:
            return combine(shares.get(member, {}), t)
        except SecureAggregationError as error:
            raise SecureAggregationError(
                f"the {kind} of client {self.roster.name(member)} cannot be taken off the sum: {error}"
            ) from None

    def _require(self, number: int, what: str) -> None:
        if number < self.roster.terms.threshold:
            raise SecureAggregationError(
                f"{number} {what}, and the threshold is {self.roster.terms.threshold} of"
                f" {self.roster.terms.asked} clients asked: nothing is revealed"
            )

    def _check(
        self,
        member: int,
        step: str,
        message: Mapping[str, Any],
        done: Iterable[int],
        words: Words | None = None,
    ) -> None:
        if member in done:
            raise SecureAggregationError("it answered twice")
        try:
            if member not in self._tag_secrets:
                peer = self.roster.members[member].share_key
                self._tag_secrets[member] = agree(self._key, peer, "tag", self.roster.digest)
            key = derive(self._tag_secrets[member], step)
            tag = message["tag"]
            verify(key, message_fields(message, words), tag)
        except SecureAggregationError as error:
            raise SecureAggregationError(f"its answer is {error}") from None
        except (KeyError, TypeError, ValueError, struct.error):
            raise SecureAggregationError("its answer cannot be read") from None
