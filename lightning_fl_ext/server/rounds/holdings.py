"""What each client holds of the global arrays, so that it can be sent what has changed of them alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet

from flwr.app import ArrayRecord, Message

from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.wire import Exchange, Held
from lightning_fl_ext.wire.codes import CountedRound
from lightning_fl_ext.wire.masks.names import MASKS
from lightning_fl_ext.wire.typed_records import records_of

_OFTEN = 2
"""So often a client may lack what it is taken to hold, before it is sent the whole for good."""


class Holdings:
    """Keeps account of one fit. What it takes for granted may be wrong: a client that lacks it says so.

    A client holds what it answered to last. One that was never asked holds what its module starts from, which
    is the first round's if both ends build it from one seed. Nothing of this is in a checkpoint: after a
    restart of the server, each client's first message stands alone.

    Args:
        exchange: Says what of the global arrays clients keep.
        first: The global arrays that the fit starts from.
    """

    def __init__(self, exchange: Exchange, first: Arrays) -> None:
        self._exchange = exchange
        self._first = self._now = digest(exchange.keepsake(first))
        self._held: dict[str, str] = {}
        self._lacked: Counter[str] = Counter()
        self._heard: dict[str, tuple[str, bytes]] = {}
        self._last: tuple[str, str, Held] | None = None

    def of_clients(self, clients: Collection[str], arrays: Arrays, server_round: int) -> dict[str, Held]:
        """Give what these clients hold of use for writing down global arrays for them.

        They are then taken to hold nothing, until they answer.

        Args:
            clients: Their ids.
            arrays: The global arrays, which they are about to be sent.
            server_round: The round; outside of rounds, clients are not expected to hold anything.
        """
        kept = self._exchange.keepsake(arrays)
        self._now, self._heard = digest(kept), {}
        present, found = Held(kept), {}
        for client in clients if kept and server_round else ():
            holds = self._held.get(client, self._first)
            self._held[client] = ""
            if self._lacked[client] >= _OFTEN:
                continue
            if holds == self._now:
                found[client] = present
            elif self._last is not None and self._last[:2] == (holds, self._now):
                found[client] = self._last[2]
        return found

    def answered(self, client: str) -> None:
        """Note that a client has answered, and holds what it was sent."""
        self._held[client] = self._now

    def lacks(self, client: str) -> None:
        """Note that a client does not hold what it was taken to hold."""
        self._lacked[client] += 1

    def heard(self, client: str, declared: str, reply: Message) -> None:
        """Note by which id a client has written its update, and, if it may be relayed, what it wrote."""
        records = records_of(reply.content, ArrayRecord).values() if self._exchange.relays else ()
        written = [record[MASKS].data for record in records if MASKS in record]
        self._heard[client] = declared, written[0] if written else b""

    def counted(
        self,
        server_round: int,
        before: Arrays,
        after: Arrays,
        clients: AbstractSet[str],
        asked: Sequence[str],
    ) -> None:
        """Note what a round has made of the global arrays.

        Args:
            server_round: The round.
            before: The global arrays that clients were sent.
            after: Those that their updates made.
            clients: Ids of those whose updates did.
            asked: Ids of all that were asked.
        """
        self._last = None
        told = dict(sorted(self._heard[client] for client in clients & self._heard.keys()))
        if not (kept := self._exchange.keepsake(before)) or len(told) != len(clients):
            return
        slots: tuple[tuple[int, int], ...] = ()
        if self._exchange.tells_sampled:
            slots = tuple((asked.index(client), len(asked)) for client in told)
        counted = CountedRound(server_round, tuple(told), slots)
        payloads = tuple(told.values()) if self._exchange.relays else ()
        made = digest(self._exchange.keepsake(after))
        self._last = digest(kept), made, Held(kept, counted, payloads)
