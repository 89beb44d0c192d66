"""A client's side of the protocol: announce keys, share them, mask, and give shares for unmasking, once.

K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017, section
4 (double masking), with the neighbours of Bell et al., CCS 2020. Each step is a function of the secrets that
the step before left; they can be kept between messages as plain bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import (
    KEY_BYTES,
    SEALED_BYTES,
    SEED_BYTES,
    agree,
    authenticate,
    derive,
    digest_of,
    new_seed,
    private_key,
    public_key,
    seal,
    unseal,
)
from lightning_fl_ext.secure.masks import Words, mask
from lightning_fl_ext.secure.messages import Plain, joined, members, message_fields, parts
from lightning_fl_ext.secure.roster import Announcement, Roster, Terms
from lightning_fl_ext.secure.shares import split
from lightning_fl_ext.secure.survivors import SurvivorList, read_signatures, read_survivors

Sign = Callable[[bytes], bytes]
Trust = Callable[[Roster], None]
TrustList = Callable[[Roster, bytes, Mapping[int, bytes]], None]


@dataclass(frozen=True, eq=False)
class SecureClient:
    """What a client keeps of a round, from one message to the next. Nothing of it is ever shown.

    Attributes:
        client_id: Its name.
        terms: Of the round.
        mask_seed: Stands for the private key of the masks shared with others.
        share_seed: Stands for the private key of sealed shares; empty once that has been used.
        self_seed: Stands for its own mask; empty before it shares.
        roster: Once it is known.
        pair_keys: The key of sealed shares for each neighbour.
        tag_secret: What messages to the server are authenticated by.
        shares: Of each neighbour whose vector is masked with this client's, and of the client itself: the
            share of the own mask's seed, followed by that of the mask key's seed.
        masked: Whether it has masked its vector.
        confirmed: Whether it has signed a list of survivors.
        public_keys: Those that belong to the first two seeds.
    """

    client_id: str
    terms: Terms
    mask_seed: bytes = field(default_factory=new_seed, repr=False)
    share_seed: bytes = field(default_factory=new_seed, repr=False)
    self_seed: bytes = field(default=b"", repr=False)
    roster: Roster | None = field(default=None, repr=False)
    pair_keys: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    tag_secret: bytes = field(default=b"", repr=False)
    shares: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    masked: bool = False
    confirmed: bool = False
    public_keys: tuple[bytes, bytes] = (b"", b"")
    """Computed if they are not given."""

    def __post_init__(self) -> None:
        if not all(self.public_keys):
            keys = public_key(self.mask_seed), public_key(self.share_seed)
            object.__setattr__(self, "public_keys", keys)

    # The steps

    def announce(self, sign: Sign | None = None) -> Announcement:
        """Give the public keys."""
        self.terms.check()
        plain = Announcement(self.client_id, *self.public_keys)
        return (
            plain if sign is None else replace(plain, signature=sign(plain.signed_text(self.terms.session)))
        )

    def share(self, roster: Roster, trust: Trust | None = None) -> tuple[SecureClient, Plain]:
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
        if (own.mask_key, own.share_key) != self.public_keys:
            raise SecureAggregationError(
                f"the roster gives client `{self.client_id}` other keys than it announced: they were altered,"
                " swapped, or are of a round before"
            )
        if trust is not None:
            trust(roster)
        me = roster.members.index(own)
        self_seed, holders, t = new_seed(), roster.holders(me), roster.share_threshold
        of_self, of_key = (split(seed, t, len(holders)) for seed in (self_seed, self.mask_seed))
        shares = dict(zip(holders, map(b"".join, zip(of_self, of_key, strict=True)), strict=True))
        own_key = private_key(self.share_seed)
        pair_keys = {j: _agree(own_key, roster, j, "share") for j in roster.neighbours(me)}
        sealed = (seal(key, me, shares[j], roster.digest) for j, key in pair_keys.items())
        done = replace(
            self,
            share_seed=b"",
            roster=roster,
            self_seed=self_seed,
            pair_keys=pair_keys,
            tag_secret=agree(own_key, roster.server_key, "tag", roster.digest),
            shares={me: shares[me]},
        )
        message: Plain = {
            "sealed": joined(sealed, SEALED_BYTES),  # in the order of its neighbours
            "commitment": digest_of(b"self", roster.digest, self_seed),
        }
        return done, done._tagged("share", message)

    def mask(self, mailbox: Mapping[str, Any], words: Words) -> tuple[SecureClient, Plain]:
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
        senders = members(mailbox, "from")
        sealed = parts(mailbox, "sealed", SEALED_BYTES, len(senders))
        if strangers := set(senders) - set(roster.neighbours(me)):
            raise SecureAggregationError(f"shares of {len(strangers)} that are no neighbours")
        if len(senders) + 1 < roster.share_threshold:
            raise SecureAggregationError(
                f"{len(senders) + 1} clients near this one shared keys, expected"
                f" {roster.share_threshold}: with fewer the sum could never be unmasked"
            )
        shares = dict(self.shares)
        own_key = private_key(self.mask_seed)
        plus, minus = [derive(self.self_seed, "self", roster.digest)], list[bytes]()
        for j, box in zip(senders, sealed, strict=True):
            try:
                shares[j] = unseal(self.pair_keys[j], j, box, roster.digest)
            except SecureAggregationError as error:
                raise SecureAggregationError(f"the share of client {roster.name(j)} is {error}") from None
            (plus if me < j else minus).append(_agree(own_key, roster, j, "mask"))
        mask(words, plus, minus)
        done = replace(self, shares=shares, masked=True)
        return done, done._tagged("masked", {}, words)

    def confirm(self, request: Mapping[str, Any], sign: Sign) -> tuple[SecureClient, Plain]:
        """Sign the list of survivors, one in a round, so that others know that they were told the same.

        Raises:
            SecureAggregationError: As of :meth:`unmask`; or it has signed a list in this round already.
        """
        if self.confirmed:
            raise SecureAggregationError("this client has signed a list of survivors in this round already")
        signature = sign(self._survivors(request).signed_text(self._known()))
        done = replace(self, confirmed=True)
        return done, done._tagged("confirm", {"list-signature": signature})

    def unmask(self, request: Mapping[str, Any], trust: TrustList | None = None) -> Plain:
        """Give the shares that take the masks off the sum. After this, forget the round.

        Of a neighbour whose vector is in the sum, that is the share of its own mask; of one that masked with
        others but dropped out, that of its key. Never both.

        Args:
            request: The list of survivors, and signatures of it, if there are any.
            trust: Raises if too few have signed this list.

        Raises:
            SecureAggregationError: The request names too few survivors, not this client, one twice, or leaves
                out a neighbour; or too few have signed it.
        """
        told = self._survivors(request)
        if trust is not None:
            inside = set(told.survivors)
            signatures = {j: s for j, s in read_signatures(request).items() if j in inside}
            trust(self._known(), told.signed_text(self._known()), signatures)
        survivors, dropped = told
        of_self = [j for j in sorted(survivors) if j in self.shares]
        of_key = [j for j in sorted(dropped) if j in self.shares]
        message: Plain = {
            "survivors": of_self,
            "self-shares": joined((self.shares[j][:SEED_BYTES] for j in of_self), SEED_BYTES),
            "dropped": of_key,
            "key-shares": joined((self.shares[j][SEED_BYTES:] for j in of_key), SEED_BYTES),
        }
        return self._tagged("unmask", message)

    # Between messages

    def to_dict(self) -> Plain:
        """Give all of it but the roster as plain values. They are secret."""
        return {
            "client-id": self.client_id,
            "session": self.terms.session,
            "asked": self.terms.asked,
            "threshold": self.terms.threshold,
            "mask-seed": self.mask_seed,
            "share-seed": self.share_seed,
            "self-seed": self.self_seed,
            "masked": self.masked,
            "confirmed": self.confirmed,
            "tag-secret": self.tag_secret,
            "public-keys": b"".join(self.public_keys),
            "pair-keys": joined(self.pair_keys.values(), KEY_BYTES),
            "holds": list(self.shares),
            "shares": joined(self.shares.values(), 2 * SEED_BYTES),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], roster: Roster | None = None) -> SecureClient:
        """Take what :meth:`to_dict` gave, and the roster, if the client had one."""
        neighbours = roster.neighbours(roster.number(state["client-id"])) if roster else ()
        pair_keys = parts(state, "pair-keys", KEY_BYTES, len(neighbours))
        shares = parts(state, "shares", 2 * SEED_BYTES, len(state["holds"]))
        mask_key, share_key = parts(state, "public-keys", KEY_BYTES, 2)
        return cls(
            state["client-id"],
            Terms(state["session"], state["asked"], state["threshold"]),
            state["mask-seed"],
            state["share-seed"],
            state["self-seed"],
            roster,
            dict(zip(neighbours, pair_keys, strict=True)),
            state["tag-secret"],
            dict(zip(state["holds"], shares, strict=True)),
            state["masked"],
            state["confirmed"],
            (mask_key, share_key),
        )

    def _known(self) -> Roster:
        if self.roster is None:
            raise SecureAggregationError("this client has not shared its keys in this round")
        return self.roster

    def _survivors(self, request: Mapping[str, Any]) -> SurvivorList:
        roster = self._known()
        if not self.masked:
            raise SecureAggregationError("this client took no part in the sum of this round")
        return read_survivors(request, roster, self._me, self.shares)

    @property
    def _me(self) -> int:
        return self._known().number(self.client_id)

    def _tagged(self, step: str, message: Plain, words: Words | None = None) -> Plain:
        key = derive(self.tag_secret, step)
        return {**message, "tag": authenticate(key, message_fields(message, words))}


def _agree(own: X25519PrivateKey, roster: Roster, j: int, purpose: str) -> bytes:
    member = roster.members[j]
    try:
        peer = member.mask_key if purpose == "mask" else member.share_key
        return agree(own, peer, purpose, roster.digest)
    except SecureAggregationError as error:
        raise SecureAggregationError(f"the key of client {roster.name(j)}: {error}") from None
