"""The server's side of a secure round, over Flower's messages: who is asked, and what the sum says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.engines import stream_replies
from lightning_fl_ext.engines.private import NOT_REACHED
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics import DamagedMetricPack
from lightning_fl_ext.metrics.stage_metrics import StageMetrics
from lightning_fl_ext.metrics.summing import common_entries, read_sum, size_of
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.secure import Announcement, SecureAggregationError, SecureServer, Terms
from lightning_fl_ext.secure.vector import decode, length
from lightning_fl_ext.server.screening.announcements import read_announcement, step_record
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.server.screening.secure_steps import (
    masked_words,
    screen_answer,
    screen_commitment,
    screen_keys,
    with_repeated_keys,
)
from lightning_fl_ext.text import listed, shown, shown_traceback
from lightning_fl_ext.wire.secure_record import ACTION, CONFIRM, MASK, SECURE, SHARE, STEP, UNMASK

log = logging.getLogger(__name__)


@dataclass
class SecureOutcome:
    """What a round has come to.

    Attributes:
        survivors: Node ids of those whose update is in the sum.
        left_out: Of those that announced keys and are not, by node id, why.
        digest: Of the sum.
        bytes_up: Bytes of masked vectors.
        stages: The metric states of the survivors, summed.
    """

    survivors: tuple[int, ...] = ()
    left_out: dict[int, Rejected] = field(default_factory=dict)
    digest: str = ""
    bytes_up: int = 0
    stages: dict[str, StageMetrics] = field(default_factory=dict)


@dataclass
class SecureRound:
    """A round that has been asked for.

    Attributes:
        grid: What carries the messages.
        phase: ``"train"`` or ``"evaluate"``, of which its steps are actions.
        terms: As they were told to the clients.
        like: The arrays that are summed: the global model's, or none.
        timeout: Seconds to wait for each step.
        nodes: Node ids of the roster's members, in its order.
    """

    grid: Grid
    phase: str
    terms: Terms
    like: Arrays
    timeout: float | None
    nodes: list[int] = field(default_factory=list)
    _names: dict[int, str] = field(default_factory=dict)

    def run(
        self, replies: Iterable[Message], outcome: SecureOutcome
    ) -> tuple[ExactMean, dict[str, float]] | None:
        """Take all steps; None if the round is void, which the outcome then says of everyone."""
        try:
            server, entries = self._open(replies, outcome)
            self._share(server, outcome)
            size = length(self.like, server.roster.wide, sum(map(size_of, entries)))
            self._mask(server, outcome, size)
            survivors = sorted(server.survivors)
            self._unmask(server, survivors, outcome)
            words = server.unmasked()
            outcome.digest = digest({"sum": words})
            mean, numbers = decode(self.like, words, server.roster.wide, len(survivors))
            metrics = read_sum(entries, numbers)
        except (SecureAggregationError, DamagedMetricPack) as error:
            log.warning("the secure round is void: %s", shown(error, 1000))
            for node in self.nodes:
                outcome.left_out.setdefault(node, Rejected(Reason.SECURE, got=f"the round is void: {error}"))
            outcome.digest = ""
            return None
        outcome.survivors = tuple(self.nodes[i] for i in survivors)
        outcome.stages = metrics.stages
        return mean, metrics.values

    def _open(self, replies: Iterable[Message], outcome: SecureOutcome) -> tuple[SecureServer, list[str]]:
        found: dict[str, tuple[int, Announcement, bool, list[str]]] = {}
        for reply in replies:
            if reply.has_error():
                continue
            node = reply.metadata.src_node_id
            self.nodes.append(node)
            try:
                announcement, needs_two, names = read_announcement(reply.content)
                screen_keys(announcement)
                if announcement.client_id in found:
                    raise Rejected(Reason.DUPLICATE, "client-id", "one node of this name", "several")
            except Rejected as why:
                outcome.left_out[node] = why
            else:
                found[announcement.client_id] = node, announcement, needs_two, names
        for client in with_repeated_keys([announcement for _, announcement, _, _ in found.values()]):
            outcome.left_out[found.pop(client)[0]] = Rejected(
                Reason.SECURE, "mask-key, share-key", "new keys of its own", "keys that came twice"
            )
        order = sorted(found)
        wide = any(needs_two for _, _, needs_two, _ in found.values())
        metrics, odd = common_entries([names for _, _, _, names in found.values()])
        if odd:
            text = f"{listed(sorted(odd))}: not summed, since not all clients of the round have it alike"
            warn_once(log, "", text)
        self._names = {node: client for client, (node, *_) in found.items()}
        self.nodes[:] = [found[client][0] for client in order] + [
            node for node in self.nodes if node in outcome.left_out
        ]
        return SecureServer(self.terms, [found[client][1] for client in order], wide, metrics), metrics

    def _share(self, server: SecureServer, outcome: SecureOutcome) -> None:
        roster = self._step(SHARE, server.roster.to_dict())

        def take(member: int, reply: Message) -> None:
            record = step_record(reply.content)
            screen_commitment(record)
            server.take_shares(member, record)

        members = range(len(server.roster.members))
        self._ask(dict.fromkeys(members, roster), take, outcome, "sharing keys")

    def _mask(self, server: SecureServer, outcome: SecureOutcome, size: int) -> None:
        def take(member: int, reply: Message) -> None:
            record = step_record(reply.content)
            words = masked_words(reply.content, size)
            server.take_masked(member, record, words)
            outcome.bytes_up += words.nbytes

        boxes = {i: self._step(MASK, server.mailbox(i)) for i in sorted(server.sharers)}
        self._ask(boxes, take, outcome, "masking", size)

    def _unmask(self, server: SecureServer, survivors: list[int], outcome: SecureOutcome) -> None:
        request = server.request()
        lost = SecureOutcome()  # who is lost now stays in the sum

        def sign(member: int, reply: Message) -> None:
            server.take_confirmation(member, step_record(reply.content))

        def take(member: int, reply: Message) -> None:
            server.take_unmask(member, step_record(reply.content))

        if server.roster.signed:
            told = dict.fromkeys(survivors, self._step(CONFIRM, request))
            self._ask(told, sign, lost, "signing who is in the sum")
            request = server.signed_request()
        self._ask(dict.fromkeys(survivors, self._step(UNMASK, request)), take, lost, "unmasking")
        for node, why in lost.left_out.items():
            log.info("node %d is in the sum, but gave no shares to unmask it: %s", node, why.got)

    def _step(self, step: str, content: Mapping[str, Any]) -> ConfigRecord:
        return ConfigRecord({**content, STEP: step, "session": self.terms.session})

    def _ask(
        self,
        contents: Mapping[int, ConfigRecord],
        take: Callable[[int, Message], None],
        outcome: SecureOutcome,
        while_: str,
        words: int = 0,
    ) -> None:
        """Send each member its message, and take what comes; who answers badly or not at all is left out."""
        messages = [
            Message(RecordDict({SECURE: content}), self.nodes[member], f"{self.phase}.{ACTION}")
            for member, content in contents.items()
        ]
        member_of = {self.nodes[member]: member for member in contents}
        waiting: dict[str, int] | None = None
        answered: set[int] = set()
        for reply in stream_replies(self.grid, messages, self.timeout, self._names.__getitem__):
            waiting = waiting or {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
            node = waiting.get(reply.metadata.reply_to_message_id)
            if node is None:
                continue
            try:
                if reply.has_error():
                    raise _failed(reply, while_)
                screen_answer(reply.content, len(self.nodes), words)
                take(member_of[node], reply)
            except Rejected as why:
                if node not in answered:
                    outcome.left_out[node] = why
            except Exception as error:  # whatever it stumbles over, it is not what was asked for
                if not isinstance(error, LightningFLError):
                    log.warning("node %d, while %s:\n%s", node, while_, shown_traceback(error))
                if node not in answered:
                    outcome.left_out[node] = Rejected(Reason.SECURE, got=f"while {while_}: {error}")
            answered.add(node)
        for node in member_of.keys() - answered:
            outcome.left_out[node] = Rejected(Reason.NO_REPLY, "", f"a reply while {while_}", "none")


def _failed(reply: Message, while_: str) -> Rejected:
    gone = reply.error.code in NOT_REACHED
    # An error's text may quote anything of the client's: its last line is what the exception said.
    lines = str(reply.error.reason or f"code {reply.error.code}").strip().splitlines()
    reason = Reason.NO_REPLY if gone else Reason.CLIENT_ERROR
    return Rejected(reason, got=f"dropped out while {while_}: {lines[-1] if lines else 'no reason'}")
