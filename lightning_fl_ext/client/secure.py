"""A client's half of secure aggregation, as a Flower mod around a train function."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.words import words_of_numbers
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.instruction_limits import check_step
from lightning_fl_ext.client.messages import read_round, read_weights
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, STAGES, StageMetrics
from lightning_fl_ext.metrics.summing import names_in, summable
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.secure import SecureAggregationError, SecureClient, Terms, UpdateRefused
from lightning_fl_ext.secure.checks import check_update
from lightning_fl_ext.secure.roster import Roster
from lightning_fl_ext.secure.signatures import SiteKeys
from lightning_fl_ext.secure.vector import encode, length
from lightning_fl_ext.text import listed
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.client_record import CLIENT, declared_id
from lightning_fl_ext.wire.layout import Blank
from lightning_fl_ext.wire.secure_record import (
    ANNOUNCE,
    CONFIRM,
    MASK,
    MASKED,
    REFUSED,
    SECURE,
    SHARE,
    STEP,
    UNMASK,
)
from lightning_fl_ext.wire.typed_records import records_of

log = logging.getLogger(__name__)

SECRETS, UPDATE, METRICS, ABOUT, ROSTER = (
    f"secure-{kind}" for kind in ("round", "update", "metrics", "about", "roster")
)
"""Records of the context that hold a round's secrets between its messages, and only then."""

Train = Callable[[Message, Context], Message]


class SecureAggregation:
    """Has a client hand in its update masked, so that the server sees the sum and nothing else.

    A Flower mod, for the action ``"secure"`` of a train function, and of an evaluate function::

        @app.train("secure", mods=[SecureAggregation()])
        @app.train()  # with mods=[refuse_plain], no plain update ever leaves
        def train(message, context): ...

    :func:`~lightning_fl_ext.client_app` has it built in. The train function answers as ever, with one
    ArrayRecord and one MetricRecord. Its reply is checked, kept in the context, and answered by keys alone;
    later messages of the round do not reach it.

    Args:
        trusted_keys: Public Ed25519 keys of the sites: a folder with a file ``<client id>.pub`` (PEM) for
            each. Keys of the round that are not signed by them are refused. Default: keys are believed.
        signing_key: A file with this site's private Ed25519 key (PEM, without a password).

    Raises:
        LightningFLError: The keys cannot be read.
    """

    def __init__(self, trusted_keys: Any = None, signing_key: Any = None) -> None:
        self._keys = SiteKeys(trusted_keys, signing_key)

    def __call__(self, message: Message, context: Context, train: Train) -> Message:
        """Answer a step of a round."""
        asked = message.content.pop(SECURE, None)
        if not isinstance(asked, ConfigRecord) or STEP not in asked:
            raise SecureAggregationError(f"a message for `{SECURE}` must say which step it asks for")
        try:
            check_step(asked)
            if asked[STEP] == ANNOUNCE:
                return self._announce(message, context, train, asked)
            return Message(self._step(context, asked), reply_to=message)
        except SecureAggregationError as error:
            forget(context)
            return Message(RecordDict({SECURE: ConfigRecord(_refusal(error))}), reply_to=message)
        except BaseException:
            forget(context)
            raise

    def _announce(
        self, message: Message, context: Context, train: Train, asked: Mapping[str, Any]
    ) -> Message:
        forget(context)
        server_round = read_round(message)
        trained = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        like = read_weights(message) if trained else {}
        if missing := {"session", "asked", "threshold", "count-key"} - {*asked}:
            raise SecureAggregationError(f"a message that asks for keys must say {sorted(missing)}")
        terms = Terms(asked["session"], asked["asked"], asked["threshold"])
        terms.check()
        reply = train(message, context)
        if reply.has_error():
            return reply
        declared = declared_id(reply.content) or client_id(context) or str(context.node_id)
        record, weight, numbers = _read(reply, asked["count-key"], terms.asked, trained)
        arrays = from_record(record)
        wide = check_update(arrays, like, weight, terms.asked, asked.get("max-update-norm"))
        secret = SecureClient(declared, terms)
        announcement = secret.announce(self._keys.sign)
        words = [words_of_numbers(found) for found in numbers.values()]
        # The global weights' own bytes are not kept: shapes and dtypes are the update's.
        context.state[UPDATE] = record
        context.state[METRICS] = ConfigRecord(
            {
                "weight": weight,
                "entries": list(numbers),
                "low": [low.astype("<u8").tobytes() for low, _ in words],
                "high": [high.astype("<u8").tobytes() for _, high in words],
            }
        )
        context.state[ABOUT] = ConfigRecord({"client-id": declared, "server-round": server_round})
        context.state[SECRETS] = ConfigRecord(secret.to_dict())
        told: dict[str, Any] = {
            "client-id": declared,
            "mask-key": announcement.mask_key,
            "share-key": announcement.share_key,
            "signature": announcement.signature,
            "wide": wide,
            "metrics": list(numbers),
        }
        return Message(
            RecordDict({SECURE: ConfigRecord(told), CLIENT: context.state[ABOUT]}), reply_to=message
        )

    def _step(self, context: Context, asked: ConfigRecord) -> RecordDict:
        kept = context.state.get(SECRETS)
        if not isinstance(kept, ConfigRecord) or kept["session"] != asked.get("session"):
            raise SecureAggregationError("this client takes no part in the round that is asked for")
        known = context.state.get(ROSTER)
        secret = SecureClient.from_dict(
            kept, Roster.from_dict(known) if isinstance(known, ConfigRecord) else None
        )
        content = RecordDict({CLIENT: context.state[ABOUT]})
        step = asked[STEP]
        if step == SHARE:
            secret, answer = secret.share(Roster.from_dict(asked), self._keys.check)
            context.state[ROSTER] = asked
        elif step == MASK:
            room = _vector(context, secret)
            secret, answer = secret.mask(asked, room.writable())
            content[MASKED] = to_record({MASKED: room.written()}, bare=[MASKED])
            for name in (UPDATE, METRICS):
                context.state.pop(name)
        elif step == CONFIRM:
            secret, answer = secret.confirm(asked, self._keys.sign)
        elif step == UNMASK:
            answer = secret.unmask(asked, self._keys.check_list)
        else:
            raise SecureAggregationError(f"there is no step {step!r}")
        content[SECURE] = ConfigRecord(answer)
        if step == UNMASK:
            forget(context)
        else:
            context.state[SECRETS] = ConfigRecord(secret.to_dict())
        return content


def refuse_plain(message: Message, context: Context, train: Train) -> Message:
    """A Flower mod for a train or evaluate function whose plain replies must not leave.

    Raises:
        SecureAggregationError: Always.
    """
    what = "update" if message.metadata.message_type.split(".")[0] == MessageType.TRAIN else "evaluation"
    raise SecureAggregationError(
        f"this client hands in its {what} only under secure aggregation, and was asked for it in the plain."
        " Nothing was computed or sent. Use `SecureFedAvg` on the server."
    )


def forget(context: Context) -> None:
    """Remove what is left of a round."""
    for name in (SECRETS, UPDATE, METRICS, ABOUT, ROSTER):
        context.state.pop(name, None)


def _refusal(error: SecureAggregationError) -> dict[str, Any]:
    told = {REFUSED: "secure-aggregation", "key": "", "expected": "", "got": str(error)}
    if isinstance(error, UpdateRefused):
        told |= {REFUSED: error.reason, "key": error.key, "expected": error.expected, "got": ""}
    return told


def _read(
    reply: Message, count_key: str, clients: int, trained: bool
) -> tuple[ArrayRecord, int, dict[str, list[int]]]:
    """Read a plain reply: its arrays, its count of examples, and the metrics that can be summed."""
    arrays = list(records_of(reply.content, ArrayRecord).values()) if trained else [ArrayRecord()]
    metrics = list(records_of(reply.content, MetricRecord).values())
    if len(arrays) != 1 or len(metrics) != 1:
        what = "one MetricRecord" + " and one ArrayRecord" * trained
        raise UpdateRefused("undecodable", "", f"{what} of the function in the app")
    values: dict[str, Any] = dict(metrics[0])
    weight = values.pop(count_key, None)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight != int(weight):
        raise UpdateRefused("example-count", count_key, "a whole number")
    states = reply.content.pop(METRIC_STATES, None)
    told: Mapping[str, Any] = states if isinstance(states, ConfigRecord) else {}
    stages = {s: StageMetrics.from_bytes(told[s], client_id="") for s in STAGES if s in told}
    summed = summable(values, int(weight), stages, clients)
    if left := sorted(set(values) - names_in(summed)):
        text = (
            "under secure aggregation these do not leave this client, since they are no means or sums, nor"
            f" metrics that were logged as objects and whose states are all sums: {listed(left)}"
        )
        warn_once(log, "", text)
    return arrays[0], int(weight), summed


def _vector(context: Context, secret: SecureClient) -> Blank:
    """Write the vector down where it lies in a message."""
    record = context.state[UPDATE]
    told: Mapping[str, Any] = context.state[METRICS]
    assert isinstance(record, ArrayRecord)
    assert secret.roster is not None
    wide, asked = secret.roster.wide, secret.roster.metrics
    places = {entry: i for i, entry in enumerate(told["entries"])}
    if strange := [entry for entry in asked if entry not in places]:
        raise SecureAggregationError(f"asked for {len(strange)} metrics that this client does not have")
    low, high = (
        np.frombuffer(b"".join(told[which][places[entry]] for entry in asked), "<u8")
        for which in ("low", "high")
    )
    arrays = from_record(record)
    mean = ExactMean(arrays)
    mean.add(arrays, told["weight"])
    # Of as many words as `encode` writes; their bytes are not looked at.
    room = Blank(np.broadcast_to(np.uint64(0), length(arrays, wide, low.size)), bare=True)
    encode(mean, wide, (low, high), room.writable())
    return room
