"""A client's half of secure aggregation, as a Flower mod around a train function."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.words import fits_one_word
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.instruction_limits import check_step
from lightning_fl_ext.client.messages import read_round, read_weights
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, STAGES, StageMetrics
from lightning_fl_ext.secure import ClientRound, SecureAggregationError, Terms, UpdateRefused
from lightning_fl_ext.secure.checks import checked_mean
from lightning_fl_ext.secure.masks import Words
from lightning_fl_ext.secure.roster import Roster
from lightning_fl_ext.secure.signatures import SiteKeys
from lightning_fl_ext.secure.vector import Metric, can_be_summed, encode
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.client_record import CLIENT, declared_id
from lightning_fl_ext.wire.secure_record import (
    ANNOUNCE,
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
warn_once = functools.cache(log.warning)  # not in every round

STATE = ("secure-round", "secure-update", "secure-metrics", "secure-about")
"""Records of the context that hold a round's secrets between its messages, and only then."""

Train = Callable[[Message, Context], Message]


class SecureAggregation:
    """Has a client hand in its update masked, so that the server sees the sum and nothing else.

    A Flower mod, for the action ``"secure"`` of a train function::

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
        like = read_weights(message)
        if missing := {"session", "asked", "threshold", "count-key"} - {*asked}:
            raise SecureAggregationError(f"a message that asks for keys must say {sorted(missing)}")
        terms = Terms(asked["session"], asked["asked"], asked["threshold"])
        terms.check()
        reply = train(message, context)
        if reply.has_error():
            return reply
        declared = declared_id(reply.content) or client_id(context) or str(context.node_id)
        arrays, weight, metrics = _read(reply, asked["count-key"])
        mean = checked_mean(arrays, like, weight, terms.asked, asked.get("max-update-norm"))
        summed = {name: m for name, m in metrics.items() if can_be_summed(m, terms.asked)}
        secret = ClientRound(declared, terms)
        announcement = secret.announce(self._keys.sign)
        # The global weights' own bytes are not kept: shapes and dtypes are the update's.
        context.state[STATE[1]] = to_record({name: arrays[name] for name in like})
        context.state[STATE[2]] = ConfigRecord(
            {
                "names": list(summed),
                "values": [m.value for m in summed.values()],
                "weights": [m.weight for m in summed.values()],
                "weight": weight,
            }
        )
        context.state[STATE[3]] = ConfigRecord({"client-id": declared, "server-round": server_round})
        context.state[STATE[0]] = ConfigRecord(secret.to_dict())
        told: dict[str, Any] = {
            "client-id": declared,
            "mask-key": announcement.mask_key,
            "share-key": announcement.share_key,
            "signature": announcement.signature,
            "wide": not fits_one_word(mean, terms.asked),
            "metrics": sorted(summed),
        }
        return Message(
            RecordDict({SECURE: ConfigRecord(told), CLIENT: context.state[STATE[3]]}), reply_to=message
        )

    def _step(self, context: Context, asked: Mapping[str, Any]) -> RecordDict:
        kept = context.state.get(STATE[0])
        if not isinstance(kept, ConfigRecord) or kept["session"] != asked.get("session"):
            raise SecureAggregationError("this client takes no part in the round that is asked for")
        secret = ClientRound.from_dict(kept)
        content = RecordDict({CLIENT: context.state[STATE[3]]})
        step = asked[STEP]
        if step == SHARE:
            secret, answer = secret.share(Roster.from_dict(asked), self._keys.check)
        elif step == MASK:
            words = _vector(context, secret)
            secret, answer = secret.mask(asked, words)
            content[MASKED] = to_record({MASKED: words}, bare=[MASKED])
            for name in STATE[1:3]:
                context.state.pop(name)
        elif step == UNMASK:
            answer = secret.unmask(asked)
        else:
            raise SecureAggregationError(f"there is no step {step!r}")
        content[SECURE] = ConfigRecord(answer)
        if step == UNMASK:
            forget(context)
        else:
            context.state[STATE[0]] = ConfigRecord(secret.to_dict())
        return content


def refuse_plain(message: Message, context: Context, train: Train) -> Message:
    """A Flower mod for a train function whose plain updates must not leave.

    Raises:
        SecureAggregationError: Always.
    """
    raise SecureAggregationError(
        "this client hands in its update only under secure aggregation, and was asked for it in the plain."
        " Nothing was trained or sent. Use `SecureFedAvg` on the server."
    )


def forget(context: Context) -> None:
    """Remove what is left of a round."""
    for name in STATE:
        context.state.pop(name, None)


def _refusal(error: SecureAggregationError) -> dict[str, Any]:
    told = {REFUSED: "secure-aggregation", "key": "", "expected": "", "got": str(error)}
    if isinstance(error, UpdateRefused):
        told |= {REFUSED: error.reason, "key": error.key, "expected": error.expected, "got": ""}
    return told


def _read(reply: Message, count_key: str) -> tuple[dict[str, Any], int, dict[str, Metric]]:
    """Read a plain reply: its arrays, its count of examples, and the metrics that have a mean."""
    arrays = list(records_of(reply.content, ArrayRecord).values())
    metrics = list(records_of(reply.content, MetricRecord).values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise UpdateRefused("undecodable", "", "one ArrayRecord and one MetricRecord of the train function")
    numbers: dict[str, Any] = dict(metrics[0])
    weight = numbers.pop(count_key, None)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight != int(weight):
        raise UpdateRefused("example-count", count_key, "a whole number")
    stages = reply.content.pop(METRIC_STATES, None)
    found, left = _metrics(numbers, int(weight), stages if isinstance(stages, ConfigRecord) else {})
    if left:
        warn_once(
            "under secure aggregation these do not leave this client, since they are no plain means: %s",
            ", ".join(f"`{name}`" for name in left),
        )
    return from_record(arrays[0]), int(weight), found


def _metrics(
    numbers: Mapping[str, Any], weight: int, stages: Mapping[str, Any]
) -> tuple[dict[str, Metric], list[str]]:
    """Find the numbers that are means over examples, and name the others."""
    told = [StageMetrics.from_bytes(stages[s], client_id="") for s in STAGES if s in stages]
    weights: dict[str, int] = {}
    for stage in told:
        for name, scalar in stage.scalars.items():
            weights[name] = scalar.num_examples if scalar.reduction == "mean" else 0
            if scalar.total is not None and weights[name]:  # under masks it is not told either
                numbers = {**numbers, name: scalar.total / weights[name]}
        weights |= dict.fromkeys(stage.names, 0)
    found = {
        name: Metric(float(value), weights.get(name, weight))
        for name, value in numbers.items()
        if isinstance(value, int | float) and weights.get(name, weight)
    }
    return found, sorted(set(numbers) - set(found))


def _vector(context: Context, secret: ClientRound) -> Words:
    record = context.state[STATE[1]]
    told: Mapping[str, Any] = context.state[STATE[2]]
    assert isinstance(record, ArrayRecord)
    assert secret.roster is not None
    arrays = from_record(record)
    logged = zip(told["names"], told["values"], told["weights"], strict=True)
    metrics = {name: Metric(value, weight) for name, value, weight in logged}
    mean = ExactMean(arrays)
    mean.add(arrays, told["weight"])
    return encode(mean, secret.roster.wide, metrics, secret.roster.metrics)
