"""Asking clients: whom, with what, and how each reply is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flwr.app import Message

from lightning_fl_ext.metrics.stage_metrics import STAGE
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.server.rounds.fit_parts import FitParts
from lightning_fl_ext.server.rounds.flower_dtypes import given_to
from lightning_fl_ext.server.rounds.messages import RoundMessages
from lightning_fl_ext.server.rounds.payload import PayloadCodec
from lightning_fl_ext.server.screening.checks import ValueLimits, screen_extras
from lightning_fl_ext.server.screening.limits import ExpectedContent
from lightning_fl_ext.server.screening.rejection import Rejection
from lightning_fl_ext.server.settings import round_config, tell_counted
from lightning_fl_ext.wire import RoundInfo, to_record
from lightning_fl_ext.wire.algorithm_names import joined
from lightning_fl_ext.wire.client_record import declared_id


def send(
    parts: FitParts,
    phase: str,
    server_round: int,
    arrays: Arrays,
    screen: Callable[[Message, str, int, ValueLimits, Arrays], ClientUpdate],
    stage: str = "validate",
) -> RoundMessages:
    """Ask clients, as the strategy chooses them.

    Args:
        parts: Of the fit.
        phase: ``"train"`` or ``"evaluate"``.
        server_round: The current round.
        arrays: The global weights.
        screen: Checks and reads a reply.
        stage: Of an evaluation.
    """
    record = to_record(arrays)
    given = given_to(parts.calls.strategy, record, arrays)
    seed = parts.trainer.seed
    config = round_config(parts.trainer, phase, server_round, parts.call_hook, parts.calls.secure)
    if stage != "validate":
        config[STAGE] = stage
    outgoing = parts.calls.call(f"configure_{phase}", server_round, given, config, parts.grid)
    sampled = tuple(sorted(parts.clients[m.metadata.dst_node_id] for m in outgoing))
    codec = PayloadCodec(parts.trainer.exchange, arrays, RoundInfo(seed, server_round, "", sampled))
    held = parts.holdings.of_clients(sampled, arrays, server_round)
    nodes = {m.metadata.dst_node_id: parts.clients[m.metadata.dst_node_id] for m in outgoing}
    known = {node: held[client] for node, client in nodes.items() if client in held}
    codec.encode_into(outgoing, given, record, config, known)
    algorithm = parts.calls.algorithm
    if algorithm is not None and algorithm.clients_keep:
        tell_counted(outgoing, config, parts.trainer.rounds, parts.clients)
    like = like_of(parts, phase, codec.like)
    trainer = parts.trainer
    limits = parts.calls.limits(len(outgoing), trainer.max_update_norm, float(trainer.limits.weight))

    def read(reply: Message, client: str) -> ClientUpdate:
        if phase == "train":
            declared = declared_id(reply.content) or client
            parts.holdings.heard(client, declared, reply)
            codec.decode(reply, declared)
        read = screen(reply, client, server_round, limits, like)
        if algorithm is not None and phase == "train":
            screen_extras(read, limits, algorithm.check, partial(algorithm.contribution, codec.like))
        return read

    def tell(reply: ClientUpdate | Rejection) -> None:
        if isinstance(reply, ClientUpdate):
            parts.holdings.answered(reply.client_id)
        unseen = parts.calls.secure and isinstance(reply, ClientUpdate)
        hook = "on_evaluation_reply" if phase == "evaluate" else "on_reply"
        parts.call_hook(hook, None if unseen else reply)

    def retell(message: Message) -> Message | None:
        parts.holdings.lacks(parts.clients[message.metadata.dst_node_id])
        return codec.whole(message)

    messages = RoundMessages(
        parts.grid,
        parts.clients,
        outgoing,
        server_round,
        read,
        parts.trainer.limits,
        ExpectedContent.of(like, parts.metrics, arrays),
        parts.owned,
        parts.trainer.round_timeout,
        parts.trainer.on_bad_update == "raise",
        tell,
        parts.earlier,
        phase,
        retell=retell,
        counts_examples=parts.calls.count_key == "num-examples",
    )
    if outgoing:
        parts.call_hook("on_messages", messages.sampled)
    return messages


def like_of(parts: FitParts, phase: str, weights: Arrays) -> Arrays:
    """Give what the arrays of a reply are like."""
    if phase != "train":
        return {}
    algorithm = parts.calls.algorithm
    return weights if algorithm is None else joined(weights, algorithm.expected(weights))
