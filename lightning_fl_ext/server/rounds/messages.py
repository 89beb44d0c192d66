"""The messages of one phase of a round: who was asked, what came back, what counts."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.engines import NotEnoughClientsError, stream_replies
from lightning_fl_ext.engines.private import NOT_REACHED
from lightning_fl_ext.failures import described, read_failure
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, STAGES, StageMetrics
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.names import Owned, drop_owned, taken_out, without_owned
from lightning_fl_ext.server.metrics.pooling import read_stages
from lightning_fl_ext.server.rounds.clients import Clients
from lightning_fl_ext.server.screening.announcements import REMEDY
from lightning_fl_ext.server.screening.content import screen_metric_states, screen_size
from lightning_fl_ext.server.screening.limits import ExpectedContent, Limits
from lightning_fl_ext.server.screening.rejection import BadUpdateError, Reason, Rejected, Rejection
from lightning_fl_ext.server.screening.values import screen_name
from lightning_fl_ext.text import shown, shown_traceback
from lightning_fl_ext.wire import NotHeldError
from lightning_fl_ext.wire.client_record import declared_id
from lightning_fl_ext.wire.secure_record import ACTION
from lightning_fl_ext.wire.typed_records import records_of

log = logging.getLogger(__name__)

_TRACEBACK = 2**16  # characters of a client's exception that are looked at, from its end

_WORDS = 1000  # characters that are kept of it: errors end with what to do

Screen = Callable[[Message, str], ClientUpdate]
"""Checks a client's reply and reads it, or raises `Rejected`."""

Reply = tuple[str, Message, ClientUpdate]
"""A client, its message, and what was read in it."""


@dataclass
class RoundMessages:
    """Sends a round's messages and screens the replies, one at a time.

    Args:
        grid: Any Flower ``Grid``.
        clients: Who is who.
        outgoing: What the strategy wants sent.
        server_round: The current round.
        screen: The check.
        limits: What a reply may hold at most.
        expected: What the model and the module's metrics call for.
        owned: Tells which names of metrics are the server's.
        timeout: Seconds to wait for the last reply.
        raise_on_bad: Whether to raise instead of leaving a bad reply out.
        on_reply: Told of every reply that counts, and of every rejection.
        earlier: Message ids of earlier rounds.
        phase: ``"train"`` or ``"evaluate"``.
        retell: Gives a message that needs nothing of what its client holds; None if it was such a one.
        counts_examples: Whether clients are weighed by their examples.

    Attributes:
        rejected: What was left out so far.
        bytes_down: Bytes of array data in the messages.
        bytes_up: Bytes of array data in the replies that counted.
        stages: The metric states of each client, taken out of the replies.
    """

    grid: Grid
    clients: Clients
    outgoing: Sequence[Message]
    server_round: int
    screen: Screen
    limits: Limits
    expected: ExpectedContent
    owned: Owned
    timeout: float | None
    raise_on_bad: bool
    on_reply: Callable[[ClientUpdate | Rejection], None]
    earlier: set[str]
    phase: str
    retell: Callable[[Message], Message | None] = lambda _: None
    counts_examples: bool = True
    rejected: list[Rejection] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    stages: dict[str, dict[str, StageMetrics]] = field(default_factory=dict)

    @property
    def sampled(self) -> list[str]:
        """Ids of the clients asked, in order."""
        return sorted(self.clients[m.metadata.dst_node_id] for m in self.outgoing)

    def accepted(self) -> Iterator[Reply]:
        """Yield each reply that counts, in the order of arrival.

        Raises:
            BadUpdateError: One is bad, and ``raise_on_bad`` is set; to be idle is not.
            NotEnoughClientsError: No client answered at all, not even with an error.
        """
        self.bytes_down = sum(map(_array_bytes, self.outgoing))
        shared = self.clients.shared(m.metadata.dst_node_id for m in self.outgoing)
        waiting: dict[str, int] | None = None
        answered: dict[str, int] = {}
        asked, again = list(self.outgoing), list[Message]()
        for reply in stream_replies(self.grid, asked, self.timeout, self.clients.__getitem__):
            waiting = self._sent() if waiting is None else waiting
            waiting |= _ids(_take_sent(again))
            to = reply.metadata.reply_to_message_id
            node = waiting.pop(to, None)
            if node is not None and (whole := self._whole(reply, to)) is not None:
                answered[to] = node
                asked.append(whole)
                again.append(whole)
                self.bytes_down += _array_bytes(whole)
                continue
            try:
                if node is None:
                    raise self._unasked(to, answered)
                answered[to] = node
                size, read, odd = self._read(reply, node, shared)
            except Exception as why:
                known = answered.get(to)
                sender = str(reply.metadata.src_node_id) if known is None else self.clients[known]
                self._reject(sender, self._reason(sender, why))
            else:
                for metric in odd:
                    self._reject(self.clients[node], metric)
                self.bytes_up += size
                self.on_reply(read)
                yield self.clients[node], reply, read
                del read
            del reply
        for message in asked:
            message.content = RecordDict()  # the global weights: no longer needed, and large
        waiting = (self._sent() if waiting is None else waiting) | _ids(again)
        self.earlier.update(answered, waiting)
        if self.outgoing and not answered:
            raise NotEnoughClientsError(
                f"none of the {len(self.outgoing)} clients asked in round {self.server_round} answered"
                + (f" within {self.timeout:g} s" if self.timeout is not None else "")
                + ". Look after the clients, or wait longer with `round_timeout`."
            )
        for client in sorted(self.clients[node] for node in waiting.values()):
            limit = f"a reply within {self.timeout:g} s" if self.timeout is not None else "a reply"
            self._reject(client, Rejected(Reason.NO_REPLY, "", limit, "none"))

    def collect(self) -> list[Reply]:
        """Wait for all replies, and give those that count in an order that no arrival can change.

        They are sorted by client id if every client has one, else by content. Clients that turn out to share
        an id, having declared it only in their replies, are left out.
        """
        replies = list(self.accepted())
        counts = Counter(client for client, _, _ in replies)
        for client in sorted(client for client, count in counts.items() if count > 1):
            self._reject(client, Rejected(Reason.DUPLICATE, "client-id", "one node of this name", "several"))
        unique = [reply for reply in replies if counts[reply[0]] == 1]
        return sorted(unique, key=_by_content if self.anonymous else _by_client)

    @property
    def anonymous(self) -> bool:
        """Whether a client was asked whose id only its reply can tell."""
        return not all(self.clients.declares(m.metadata.dst_node_id) for m in self.outgoing)

    def _sent(self) -> dict[str, int]:
        return _ids(self.outgoing)

    def _whole(self, reply: Message, to: str) -> Message | None:
        """Give what to ask a client again with, if it lacks what its message builds on."""
        if not reply.has_error() or NotHeldError.words not in str(reply.error.reason)[-_TRACEBACK:]:
            return None
        asked = next((m for m in self.outgoing if m.metadata.message_id == to), None)
        return None if asked is None else self.retell(asked)

    def _unasked(self, message_id: str, answered: dict[str, int]) -> Rejected:
        if message_id in answered:
            return Rejected(Reason.DUPLICATE, "", "one reply", "another one")
        if message_id in self.earlier:
            return Rejected(
                Reason.STALE, "", f"a reply of round {self.server_round}", "one of a round before"
            )
        return Rejected(Reason.NOT_SAMPLED, "", f"one of {len(self.outgoing)} sampled clients", "another")

    def _read(
        self, reply: Message, node: int, shared: Collection[str]
    ) -> tuple[int, ClientUpdate, list[Rejected]]:
        """Bound a reply, check it and read it.

        Returns:
            Bytes of its arrays, what was read, and which of its metrics are left out.

        Raises:
            Exception: Whatever goes wrong; the reply does not count.
        """
        if reply.has_error():
            raise self._failed(reply, node)
        content = reply.content
        states = content.pop(METRIC_STATES, None)
        screen_size(content, self.limits, self.expected)
        declared = declared_id(content)
        screen_name(declared, self.limits.name)
        if not self.clients.agrees(node, declared):
            raise Rejected(Reason.NOT_SAMPLED, "client-id", self.clients[node], declared)
        client = self.clients[node]
        if client in shared:
            raise Rejected(Reason.DUPLICATE, "client-id", "one node of this name", "several")
        size = _array_bytes(reply)
        dropped = drop_owned(content, self.owned)
        read = self.screen(reply, client)
        odd: list[Rejected] = []
        self.stages[client] = {}
        try:
            record = ConfigRecord() if states is None else states
            if not isinstance(record, ConfigRecord):
                raise Rejected(Reason.METRIC, METRIC_STATES, "a ConfigRecord", type(record).__name__)
            screen_metric_states(record, self.limits, self.expected)
            stages = read_stages(record, declared, client, self.limits, self._most_examples(read))
            self.stages[client], more = without_owned(stages, self.owned)
            dropped |= more
        except Rejected as why:
            odd.append(why)
        except Exception as error:
            log.warning("metric states of client `%s`:\n%s", shown(client), shown_traceback(error))
            odd.append(Rejected(Reason.METRIC, METRIC_STATES, "whole metric states", described(error)))
        return size, read, odd + taken_out(dropped)

    def _failed(self, reply: Message, node: int) -> Rejected:
        """Read an error reply; a client whose id nobody knew may tell it there."""
        told = str(reply.error.reason or f"code {reply.error.code}")
        reason = told[-_TRACEBACK:].strip()
        if f"registered with name '{ACTION}'" in reason:
            return Rejected(Reason.SECURE, "", "keys for a secure round", REMEDY)
        failure = read_failure(reason)
        if reply.error.code in NOT_REACHED:
            return Rejected(Reason.NO_REPLY, got=str(failure))
        if failure.client_id:
            screen_name(failure.client_id, self.limits.name)
            self.clients.agrees(node, failure.client_id)
        words = shown(failure.words, _WORDS - len(failure.place) - 3)
        return Rejected(Reason.CLIENT_ERROR, got=str(replace(failure, words=words)), most=_WORDS)

    def _most_examples(self, read: ClientUpdate) -> dict[str, int]:
        """Say how many examples a stage can have by what the reply itself says.

        The validation inside a fit is over data of its own, of which the reply does not tell.
        """
        stages = ("train",) if self.phase == "train" else STAGES
        return dict.fromkeys(stages, read.num_examples) if self.counts_examples else {}

    def _reason(self, client: str, error: Exception) -> Rejected:
        """Give the reason for which a reply is left out; log what no check raised, with its traceback."""
        if isinstance(error, Rejected):
            return error
        log.warning(
            "the %s reply of client `%s` in round %d is left out: reading it raised\n%s",
            *(self.phase, shown(client), self.server_round, shown_traceback(error)),
        )
        return Rejected(Reason.UNDECODABLE, got=described(error))

    def _reject(self, client: str, why: Rejected) -> None:
        phase = "train" if why.reason is Reason.METRIC else self.phase  # a metric is named once
        rejection = Rejection(client, self.server_round, why.reason, why.key, why.expected, why.got, phase)
        self.rejected.append(rejection)
        if self.raise_on_bad and why.reason is not Reason.IDLE:
            raise BadUpdateError(f"{rejection}. To go on without it, use `on_bad_update='exclude'`.")
        log.info("%s", rejection)
        self.on_reply(rejection)

    def leave_out(self, client: str, why: Rejected) -> None:
        """Name a client that is left out after its reply had passed."""
        self._reject(client, why)


def _ids(messages: Iterable[Message]) -> dict[str, int]:
    """Give the nodes that messages are for, by the messages' ids."""
    return {m.metadata.message_id: m.metadata.dst_node_id for m in messages}


def _take_sent(messages: list[Message]) -> list[Message]:
    """Take those out of a list that have been sent by now."""
    sent = [message for message in messages if message.metadata.message_id]
    messages[:] = [message for message in messages if not message.metadata.message_id]
    return sent


def _by_client(reply: Reply) -> str:
    return reply[0]


def _by_content(reply: Reply) -> tuple[bool, float, str, int, str]:
    update = reply[2]
    nan = math.isnan(update.score)
    metrics = repr(sorted(update.metrics.items()))
    return nan, 0.0 if nan else update.score, update.digest, update.num_examples, metrics


def _array_bytes(message: Message) -> int:
    records = records_of(message.content, ArrayRecord).values()
    return sum(len(array.data) for record in records for array in record.values())
