"""A client's half of the records: what it reads in a message and puts into its reply."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from lightning_fl_ext.client.results.store import EVALUATION, UPDATE
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.wire import RoundInfo, from_record, to_record
from lightning_fl_ext.wire.client_record import CLIENT
from lightning_fl_ext.wire.contents import records_of


def read_instruction(message: Message, client_id: str) -> tuple[dict[str, NDArray[Any]], RoundInfo]:
    """Read what the server sent, and of which round it is.

    Args:
        message: A train or evaluate message.
        client_id: The client's id.

    Returns:
        Named arrays as they are on the wire, and the info (round 0 if the server sends none).

    Raises:
        LightningFLError: There is not exactly one array record.
    """
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise LightningFLError(
            f"a {message.metadata.message_type} message must hold exactly one ArrayRecord, the global"
            f" weights. Got {len(records)}: {list(records)}."
        )
    sampled = [r["sampled"] for r in records_of(message.content, ConfigRecord).values() if "sampled" in r]
    info = RoundInfo(
        read_config(message, "run-seed", 0),
        read_config(message, "server-round", 0),
        client_id,
        tuple(map(str, sampled[0])) if sampled and isinstance(sampled[0], list) else (),
    )
    return from_record(next(iter(records.values()))), info


def read_config(message: Message, key: str, default: int) -> int:
    """Read an integer that the server's configuration holds."""
    for record in records_of(message.content, ConfigRecord).values():
        if key in record:
            value = record[key]
            if isinstance(value, int):
                return value
            raise LightningFLError(f"the server's config `{key}` must be an integer. Got {value!r}.")
    return default


def read_settings(message: Message) -> dict[str, object]:
    """Read all that the server's configuration holds."""
    return {k: v for r in records_of(message.content, ConfigRecord).values() for k, v in r.items()}


def read_run_id(message: Message, context: Context) -> str:
    """Tell which run a message belongs to: as the server's configuration says, else Flower's run id.

    The server's own outlives it: a run that goes on after a kill is another run to Flower.
    """
    for record in records_of(message.content, ConfigRecord).values():
        if "run-id" in record:
            return str(record["run-id"])
    return str(context.run_id)


def outcome_kind(message: Message) -> str:
    """Tell which outcome answers a message: ``"evaluation"`` or ``"update"``."""
    return EVALUATION if message.metadata.message_type.split(".")[0] == MessageType.EVALUATE else UPDATE


def outcome_reply(
    message: Message, outcome: ClientUpdate, stages: Mapping[str, bytes], coded: Collection[str] = ()
) -> Message:
    """Put an outcome into a reply: its arrays if it is an update, its metrics, and the client's record.

    Args:
        message: To reply to.
        outcome: Of the fit or the evaluation.
        stages: Metric states by stage, if the server asked for them. They travel in a ConfigRecord, since
            Flower's strategies and mods take the one ArrayRecord for the weights.
        coded: Names of its arrays that are codes.
    """
    arrays = {"arrays": to_record(outcome.arrays, coded)} if outcome_kind(message) == UPDATE else {}
    content = RecordDict(
        {
            **arrays,
            "metrics": MetricRecord({**outcome.metrics, "num-examples": outcome.num_examples}),
            CLIENT: ConfigRecord(
                {
                    "client-id": outcome.client_id,
                    "server-round": outcome.server_round,
                    "examples-seen": outcome.examples_seen,
                    "steps": outcome.steps,
                    "epochs": outcome.epochs,
                }
            ),
            **({METRIC_STATES: ConfigRecord(dict(stages))} if stages else {}),
        }
    )
    return Message(content, reply_to=message)


def query_reply(message: Message, client_id: str) -> Message:
    """Answer who this client is."""
    return Message(RecordDict({CLIENT: ConfigRecord({"client-id": client_id})}), reply_to=message)
