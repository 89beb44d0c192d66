"""The list of who is in the sum: what makes it one, and what says that all clients were told the same.

Clients give shares by this list. A server that told each another one could gather shares of both kinds from
different clients, each of whom sees a list above the threshold. So sites that trust each other's long-lived
keys sign the list, and give shares only once a threshold of them has signed the same: of two lists, one then
has too few (K. Bonawitz et al., CCS 2017, figure 4, round 3, "consistency check").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from lightning_fl_ext.secure.errors import SecureAggregationError
from lightning_fl_ext.secure.keys import digest_of
from lightning_fl_ext.secure.messages import Plain, members, parts
from lightning_fl_ext.secure.roster import Roster

SIGNATURE_BYTES = 64
"""Of Ed25519."""


class SurvivorList(NamedTuple):
    """Who is in the sum, and who masked with others but is not, by number."""

    survivors: list[int]
    dropped: list[int]

    def signed_text(self, roster: Roster) -> bytes:
        """Give the bytes that signatures are over."""
        lists = (np.array(sorted(numbers), "<u8").tobytes() for numbers in self)
        return digest_of(b"survivors", roster.digest, *lists)


def read_survivors(
    request: Mapping[str, Any], roster: Roster, me: int, holds: Collection[int]
) -> SurvivorList:
    """Read the list of survivors, as a client does before it signs it or gives shares by it.

    Args:
        request: Of the server.
        roster: Of the round.
        me: The client's number.
        holds: Of whom it has shares.

    Raises:
        SecureAggregationError: The request names too few survivors, not this client, one twice, or leaves
            out a neighbour.
    """
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
    if not set(holds) <= set(everyone):
        raise SecureAggregationError("the list of survivors says nothing of a neighbour")
    return SurvivorList(survivors, dropped)


def joined_signatures(signatures: Mapping[int, bytes]) -> Plain:
    """Give signatures of the list as the last request holds them."""
    return {"signers": list(signatures), "list-signatures": b"".join(signatures.values())}


def read_signatures(request: Mapping[str, Any]) -> dict[int, bytes]:
    """Read what `joined_signatures` gave; nothing, if the request holds none.

    Raises:
        SecureAggregationError: It is something else.
    """
    if "signers" not in request:
        return {}
    signers = members(request, "signers")
    return dict(zip(signers, parts(request, "list-signatures", SIGNATURE_BYTES, len(signers)), strict=True))
