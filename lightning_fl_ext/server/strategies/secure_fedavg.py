"""`SecureFedAvg`: the exact mean of updates of which the server sees none."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.engines import stream_replies
from lightning_fl_ext.engines.private import NOT_REACHED
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.secure import Announcement, SecureAggregationError, ServerRound, Terms
from lightning_fl_ext.secure.vector import Total, decode, length
from lightning_fl_ext.server.screening.announcements import read_announcement, step_record
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.server.screening.secure_steps import (
    masked_words,
    screen_answer,
    screen_commitment,
    screen_keys,
    with_repeated_keys,
)
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.text import shown, shown_traceback
from lightning_fl_ext.wire.records import written_record
from lightning_fl_ext.wire.secure_record import (
    ACTION,
    ANNOUNCE,
    MASK,
    SECURE,
    SHARE,
    STEP,
    UNMASK,
)

log = logging.getLogger(__name__)


@dataclass
class SecureOutcome:
    """What a round has come to.

    Attributes:
        survivors: Node ids of those whose update is in the sum.
        left_out: Of those that announced keys and are not, by node id, why.
        digest: Of the sum.
        bytes_up: Bytes of masked vectors.
    """

    survivors: tuple[int, ...] = ()
    left_out: dict[int, Rejected] = field(default_factory=dict)
    digest: str = ""
    bytes_up: int = 0


class SecureFedAvg(ExactFedAvg):
    """FedAvg whose server sees the sum of a round, and nothing of one client.

    The protocol is that of Bonawitz et al. (CCS 2017) with the neighbours of Bell et al. (CCS 2020): clients
    mask what :class:`ExactFedAvg` would sum, as whole numbers modulo 2^64, so the masks cancel to the bit
    and the result is that of :class:`ExactFedAvg` over those who did not drop out. Keys and masks are new in
    every round, from the operating system's generator, whatever the run's seed.

    Clients need their half: :func:`~lightning_fl_ext.client_app` has it.

    Args:
        threshold: Fraction of the clients asked whose masked update must arrive, more than half; with fewer
            the round is void, and nothing is revealed.
        step_timeout: Seconds to wait for each step after training; None for ever.
        **options: Arguments of Flower's ``FedAvg``. ``fraction_evaluate`` is 0 unless given, since an
            evaluation's metrics travel in the plain; the numbers that a fit logs are inside the sum.

    Raises:
        ValueError: An argument is not one of the above, or ``train_metrics_aggr_fn`` is given: there are no
            single clients' metrics to call it with.

    Example:
        >>> SecureFedAvg(threshold=0.8).needed(10)
        8
    """

    secure = True
    """It asks clients in several steps, and gets no update of any."""

    # Functions are no state: nothing of a round can come into a checkpoint.
    _round: Callable[[], _Asked] | None = None
    _outcome: Callable[[], SecureOutcome] | None = None

    def __init__(self, threshold: float = 2 / 3, step_timeout: float | None = 600.0, **options: Any) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.5 < threshold <= 1:
            raise ValueError(
                "`threshold` must be a fraction above one half, up to 1: with fewer a server could unmask"
                f" single updates. Got {threshold!r}."
            )
        if step_timeout is not None and not step_timeout > 0:
            raise ValueError(f"`step_timeout` must be a positive number of seconds. Got {step_timeout!r}.")
        if options.get("train_metrics_aggr_fn") is not None:
            raise ValueError(
                "`train_metrics_aggr_fn` needs each client's metrics, which `SecureFedAvg` does not see: it"
                " sums them under the masks. Leave it out."
            )
        super().__init__(**{"fraction_evaluate": 0.0, **options})
        self.threshold = float(threshold)
        self.step_timeout = step_timeout

    def needed(self, asked: int) -> int:
        """Give how many of the clients asked must survive."""
        return max(math.ceil(self.threshold * asked - 1e-9), asked // 2 + 1)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure as FedAvg does, and ask for keys.

        Raises:
            SecureAggregationError: Fewer than three clients would be asked.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        if not messages:
            return messages
        terms = Terms(secrets.token_bytes(16), len(messages), self.needed(len(messages)))
        terms.check()
        step: dict[str, Any] = {
            STEP: ANNOUNCE,
            "session": terms.session,
            "asked": terms.asked,
            "threshold": terms.threshold,
            "count-key": self.weighted_by_key,
        }
        if "max-update-norm" in config:
            step["max-update-norm"] = config["max-update-norm"]
        for message in messages:
            message.metadata.message_type = f"train.{ACTION}"
            message.content = RecordDict({**message.content, SECURE: ConfigRecord(step)})
        assert self._like is not None
        asked = _Asked(grid, terms, self._like, self.step_timeout)
        self._round = lambda: asked
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the keys, have them shared, and sum what comes masked.

        Args:
            server_round: The current round.
            replies: Of the clients that announced their keys; others are passed over.
        """
        assert self._round is not None
        asked, self._round, self._like = self._round(), None, None
        outcome = SecureOutcome()
        self._outcome = lambda: outcome
        total = asked.run(replies, outcome)
        if total is None:
            return None, None
        return written_record(asked.like, total.mean.result), MetricRecord(dict(total.metrics))

    def take_outcome(self) -> SecureOutcome:
        """Give what the last round has come to, once."""
        outcome, self._outcome = self._outcome, None
        return outcome() if outcome is not None else SecureOutcome()


@dataclass
class _Asked:
    """A round that has been asked for."""

    grid: Grid
    terms: Terms
    like: Arrays
    timeout: float | None
    nodes: list[int] = field(default_factory=list)
    """Of the roster's members, in its order."""

    def run(self, replies: Iterable[Message], outcome: SecureOutcome) -> Total | None:
        """Take all steps; None if the round is void, which the outcome then says of everyone."""
        try:
            server, names = self._open(replies, outcome)
            self._share(server, outcome)
            self._mask(server, outcome, length(self.like, server.roster.wide, names))
            survivors = sorted(server.survivors)
            self._unmask(server, survivors, outcome)
            words = server.unmasked()
            outcome.digest = digest({"sum": words})
            total = decode(self.like, words, server.roster.wide, names, len(survivors))
        except SecureAggregationError as error:
            log.warning("the secure round is void: %s", shown(error, 1000))
            for node in self.nodes:
                outcome.left_out.setdefault(node, Rejected(Reason.SECURE, got=f"the round is void: {error}"))
            outcome.digest = ""
            return None
        outcome.survivors = tuple(self.nodes[i] for i in survivors)
        return total

    def _open(self, replies: Iterable[Message], outcome: SecureOutcome) -> tuple[ServerRound, list[str]]:
        found: dict[str, tuple[int, Announcement, bool, set[str]]] = {}
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
                found[announcement.client_id] = node, announcement, needs_two, set(names)
        for client in with_repeated_keys([announcement for _, announcement, _, _ in found.values()]):
            outcome.left_out[found.pop(client)[0]] = Rejected(
                Reason.SECURE, "mask-key, share-key", "new keys of its own", "keys that came twice"
            )
        order = sorted(found)
        wide = any(needs_two for _, _, needs_two, _ in found.values())
        named = [names for _, _, _, names in found.values()]
        metrics = sorted(set.intersection(*named)) if named else []
        self.nodes[:] = [found[client][0] for client in order] + [
            node for node in self.nodes if node in outcome.left_out
        ]
        return ServerRound(self.terms, [found[client][1] for client in order], wide, metrics), metrics

    def _share(self, server: ServerRound, outcome: SecureOutcome) -> None:
        roster = server.roster.to_dict()

        def take(member: int, reply: Message) -> None:
            record = step_record(reply.content)
            screen_commitment(record)
            server.take_shares(member, record)

        members = range(len(server.roster.members))
        self._ask(SHARE, dict.fromkeys(members, roster), take, outcome, "sharing keys")

    def _mask(self, server: ServerRound, outcome: SecureOutcome, size: int) -> None:
        def take(member: int, reply: Message) -> None:
            record = step_record(reply.content)
            words = masked_words(reply.content, size)
            server.take_masked(member, record, words)
            outcome.bytes_up += words.nbytes

        boxes = {i: server.mailbox(i) for i in sorted(server.sharers)}
        self._ask(MASK, boxes, take, outcome, "masking", size)

    def _unmask(self, server: ServerRound, survivors: list[int], outcome: SecureOutcome) -> None:
        request = server.request()
        lost = SecureOutcome()  # who is lost now stays in the sum

        def take(member: int, reply: Message) -> None:
            server.take_unmask(member, step_record(reply.content))

        self._ask(UNMASK, dict.fromkeys(survivors, request), take, lost, "unmasking")
        for node, why in lost.left_out.items():
            log.info("node %d is in the sum, but gave no shares to unmask it: %s", node, why.got)

    def _ask(
        self,
        step: str,
        contents: Mapping[int, Mapping[str, Any]],
        take: Callable[[int, Message], None],
        outcome: SecureOutcome,
        while_: str,
        words: int = 0,
    ) -> None:
        """Send each member its message, and take what comes; who answers badly or not at all is left out."""
        messages = [
            Message(
                RecordDict({SECURE: ConfigRecord({**content, STEP: step, "session": self.terms.session})}),
                self.nodes[member],
                f"train.{ACTION}",
            )
            for member, content in contents.items()
        ]
        member_of = {self.nodes[member]: member for member in contents}
        waiting: dict[str, int] | None = None
        answered: set[int] = set()
        for reply in stream_replies(self.grid, messages, self.timeout):
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
