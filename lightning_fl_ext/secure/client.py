"""A client's side of the protocol: announce keys, share them, mask, and give shares for unmasking, once.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017, section
4 (double masking), with the neighbours of Bell et al., CCS 2020. Each step is a function of the secrets that
the step before left; they can be kept between messages as plain bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import (
    SEED_BYTES,
    agree,
    authenticate,
    derive,
    digest_of,
    new_seed,
    public_key,
    seal,
    unseal,
)
from lightning_fl_ext.secure.masks import Words, mask
from lightning_fl_ext.secure.messages import Plain, members, message_fields, pairs
from lightning_fl_ext.secure.roster import Announcement, Roster, Terms
from lightning_fl_ext.secure.shares import split

Sign = Callable[[bytes], bytes]
Trust = Callable[[Roster], None]


@dataclass(frozen=True, eq=False)
class ClientRound:
    """What a client keeps of a round, from one message to the next. Nothing of it is ever shown.

    Attributes:
        client_id: Its name.
        terms: Of the round.
        mask_seed: Stands for the private key of the masks shared with others.
        share_seed: Stands for the private key of sealed shares.
        self_seed: Stands for its own mask; empty before it shares.
        roster: Once it is known.
        shares: Of each neighbour whose vector is masked with this client's, and of the client itself: the
            shares of the own mask's seed and of the mask key's seed.
    """

    client_id: str
    terms: Terms
    mask_seed: bytes = field(default_factory=new_seed, repr=False)
    share_seed: bytes = field(default_factory=new_seed, repr=False)
    self_seed: bytes = field(default=b"", repr=False)
    roster: Roster | None = field(default=None, repr=False)
    shares: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    masked: bool = False

    # The steps

    def announce(self, sign: Sign | None = None) -> Announcement:
        """Give the public keys."""
        self.terms.check()
        plain = Announcement(self.client_id, public_key(self.mask_seed), public_key(self.share_seed))
        return (
            plain if sign is None else replace(plain, signature=sign(plain.signed_text(self.terms.session)))
        )

    def share(self, roster: Roster, trust: Trust | None = None) -> tuple[ClientRound, Plain]:
        """Check the roster, and seal shares of the secrets for the neighbours.

        Args:
            roster: As the server sent it.
            trust: Raises if a key is not signed by whom it is said to be of.

        Raises:
            SecureAggregationError: The roster is of other terms, or this client's keys in it are not its own.
        """
        if self.self_seed:
            raise SecureAggregationError("this client has shared its keys in this round already")
        if roster.terms != self.terms:
            raise SecureAggregationError("the roster is of another round, or of other terms than were told")
        roster.check()
        own = next((m for m in roster.members if m.client_id == self.client_id), None)
        if own is None:
            raise SecureAggregationError(f"client `{self.client_id}` is not in the roster of this round")
        if (own.mask_key, own.share_key) != (public_key(self.mask_seed), public_key(self.share_seed)):
            raise SecureAggregationError(
                f"the roster gives client `{self.client_id}` other keys than it announced: they were altered,"
                " swapped, or are of a round before"
            )
        if trust is not None:
            trust(roster)
        me = roster.members.index(own)
        self_seed, holders, t = new_seed(), roster.holders(me), roster.share_threshold
        of_self, of_key = (split(seed, t, len(holders)) for seed in (self_seed, self.mask_seed))
        parts = dict(zip(holders, zip(of_self, of_key, strict=True), strict=True))
        sealed = {
            j: seal(self._pair_key(roster, j), me, b"".join(part), roster.digest)
            for j, part in parts.items()
            if j != me
        }
        done = replace(self, roster=roster, self_seed=self_seed, shares={me: parts[me]})
        message: Plain = {
            "to": list(sealed),
            "sealed": list(sealed.values()),
            "commitment": digest_of(b"self", roster.digest, self_seed),
        }
        return done, done._tagged("share", message)

    def mask(self, mailbox: Mapping[str, Any], words: Words) -> tuple[ClientRound, Plain]:
        """Open the shares of the neighbours, and mask the vector, in place.

        Args:
            mailbox: The sealed shares for this client, and who sent them.
            words: One-dimensional and writable; masked, it may leave the client.

        Raises:
            SecureAggregationError: A share is not what its sender sealed for this client in this round, or
                there are too few.
        """
        roster, me = self._known(), self._me
        if self.masked:
            raise SecureAggregationError("this client has masked its update in this round already")
        senders, sealed = pairs(mailbox, "from", "sealed")
        if strangers := [j for j in senders if j not in roster.neighbours[me]]:
            raise SecureAggregationError(f"shares of {len(strangers)} that are no neighbours")
        if len(senders) + 1 < roster.share_threshold:
            raise SecureAggregationError(
                f"{len(senders) + 1} clients near this one shared keys, expected"
                f" {roster.share_threshold}: with fewer the sum could never be unmasked"
            )
        shares = dict(self.shares)
        plus, minus = [derive(self.self_seed, "self", roster.digest)], list[bytes]()
        for j, box in zip(senders, sealed, strict=True):
            try:
                opened = unseal(self._pair_key(roster, j), j, box, roster.digest)
                pair = agree(self.mask_seed, roster.members[j].mask_key, "mask", roster.digest)
            except SecureAggregationError as error:
                raise SecureAggregationError(f"the share of client {roster.name(j)} is {error}") from None
            shares[j] = opened[:SEED_BYTES], opened[SEED_BYTES:]
            (plus if me < j else minus).append(pair)
        mask(words, plus, minus)
        done = replace(self, shares=shares, masked=True)
        return done, done._tagged("masked", {}, words)

    def unmask(self, request: Mapping[str, Any]) -> Plain:
        """Give the shares that take the masks off the sum. After this, forget the round.

        Of a neighbour whose vector is in the sum, that is the share of its own mask; of one that masked with
        others but dropped out, that of its key. Never both.

        Raises:
            SecureAggregationError: The request names too few survivors, not this client, one twice, or leaves
                out a neighbour.
        """
        roster, me = self._known(), self._me
        if not self.masked:
            raise SecureAggregationError("this client took no part in the sum of this round")
        survivors, dropped = members(request, "survivors"), members(request, "dropped")
        everyone = [*survivors, *dropped]
        if len(set(everyone)) < len(everyone):
            raise SecureAggregationError("both kinds of shares of one client would unmask it")
        if not set(everyone) <= set(range(len(roster.members))) or me not in survivors:
            raise SecureAggregationError("the list of survivors is not one of this client's round")
        if len(survivors) < roster.terms.threshold:
            raise SecureAggregationError(
                f"{len(survivors)} survivors are under the threshold of {roster.terms.threshold}"
            )
        if not set(self.shares) <= set(everyone):
            raise SecureAggregationError("the list of survivors says nothing of a neighbour")
        of_self = [j for j in sorted(survivors) if j in self.shares]
        of_key = [j for j in sorted(dropped) if j in self.shares]
        message: Plain = {
            "survivors": of_self,
            "self-shares": [self.shares[j][0] for j in of_self],
            "dropped": of_key,
            "key-shares": [self.shares[j][1] for j in of_key],
        }
        return self._tagged("unmask", message)

    # Between messages

    def to_dict(self) -> Plain:
        """Give all of it as plain values. They are secret."""
        state: Plain = {
            "client-id": self.client_id,
            "session": self.terms.session,
            "asked": self.terms.asked,
            "threshold": self.terms.threshold,
            "mask-seed": self.mask_seed,
            "share-seed": self.share_seed,
            "self-seed": self.self_seed,
            "masked": self.masked,
            "holds": list(self.shares),
            "shares": [b"".join(pair) for pair in self.shares.values()],
        }
        known = self.roster.to_dict() if self.roster else {}
        return state | {f"roster.{name}": value for name, value in known.items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ClientRound:
        """Take what :meth:`to_dict` gave."""
        known = {k.removeprefix("roster."): v for k, v in state.items() if k.startswith("roster.")}
        return cls(
            state["client-id"],
            Terms(state["session"], state["asked"], state["threshold"]),
            state["mask-seed"],
            state["share-seed"],
            state["self-seed"],
            Roster.from_dict(known) if known else None,
            {
                j: (both[:SEED_BYTES], both[SEED_BYTES:])
                for j, both in zip(state["holds"], state["shares"], strict=True)
            },
            state["masked"],
        )

    def _known(self) -> Roster:
        if self.roster is None:
            raise SecureAggregationError("this client has not shared its keys in this round")
        return self.roster

    @property
    def _me(self) -> int:
        return [m.client_id for m in self._known().members].index(self.client_id)

    def _pair_key(self, roster: Roster, j: int) -> bytes:
        try:
            return agree(self.share_seed, roster.members[j].share_key, "share", roster.digest)
        except SecureAggregationError as error:
            raise SecureAggregationError(f"the key of client {roster.name(j)}: {error}") from None

    def _tagged(self, step: str, message: Plain, words: Words | None = None) -> Plain:
        roster = self._known()
        key = agree(self.share_seed, roster.server_key, f"tag {step}", roster.digest)
        return {**message, "tag": authenticate(key, message_fields(message, words))}
