"""A client's half of the records: what it reads in a message and puts into its reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.wire import from_record, to_record


def read_instruction(message: Message) -> tuple[dict[str, NDArray[Any]], int]:
    """Read the global weights and the round.

    Args:
        message: A train or evaluate message.

    Returns:
        Named arrays, and ``config["server-round"]`` (0 if the server sends none).

    Raises:
        LightningFLError: There is not exactly one array record.
    """
    records = message.content.array_records
    if len(records) != 1:
        raise LightningFLError(
            f"a {message.metadata.message_type} message must hold exactly one ArrayRecord, the global"
            f" weights. Got {len(records)}: {list(records)}."
        )
    return from_record(next(iter(records.values()))), read_config(message, "server-round", 0)


def read_config(message: Message, key: str, default: int) -> int:
    """Read an integer that the server's configuration holds."""
    for record in message.content.config_records.values():
        if key in record:
            value = record[key]
            if isinstance(value, int):
                return value
            raise LightningFLError(f"the server's config `{key}` must be an integer. Got {value!r}.")
    return default


def train_reply(message: Message, update: ClientUpdate) -> Message:
    """Put an update into a reply: one ``ArrayRecord``, one ``MetricRecord``, and the client's record."""
    content = RecordDict(
        {
            "arrays": to_record(update.arrays),
            "metrics": _metrics(update.metrics, update.num_examples),
            "client": ConfigRecord(
                {
                    "client-id": update.client_id,
                    "server-round": update.server_round,
                    "examples-seen": update.examples_seen,
                    "steps": update.steps,
                    "epochs": update.epochs,
                }
            ),
        }
    )
    return Message(content, reply_to=message)


def evaluate_reply(
    message: Message, metrics: Mapping[str, float], num_examples: int, client_id: str, server_round: int
) -> Message:
    """Put the metrics of an evaluation into a reply, with the number of examples they are over."""
    content = RecordDict(
        {
            "metrics": _metrics(metrics, num_examples),
            "client": ConfigRecord({"client-id": client_id, "server-round": server_round}),
        }
    )
    return Message(content, reply_to=message)


def query_reply(message: Message, client_id: str) -> Message:
    """Answer who this client is."""
    return Message(RecordDict({"client": ConfigRecord({"client-id": client_id})}), reply_to=message)


def _metrics(metrics: Mapping[str, float], num_examples: int) -> MetricRecord:
    return MetricRecord({**metrics, "num-examples": num_examples})
