"""A client's half of the records: what it reads in a message and puts into its reply."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from lightning_fl_ext.client.instruction_limits import (
    MOST_ROUND,
    MOST_SEED,
    InstructionError,
    bounded_integer,
    check_arrays,
    choice,
    flag,
    name,
    names,
)
from lightning_fl_ext.client.results.store import EVALUATION, UPDATE
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, STAGE
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire import Exchange, RoundInfo, from_record, to_record
from lightning_fl_ext.wire.algorithm_names import COUNTED, parted
from lightning_fl_ext.wire.client_record import CLIENT
from lightning_fl_ext.wire.typed_records import records_of


def read_instruction(
    message: Message, client_id: str, exchange: Exchange, held: Arrays | None = None
) -> tuple[Arrays, Arrays, RoundInfo, bool]:
    """Read what the server sent, of which round it is, and whether it asks for metric states.

    Args:
        message: A train or evaluate message.
        client_id: The client's id.
        exchange: Reads what is on the wire.
        held: What the client has kept of earlier global arrays.

    Returns:
        The global arrays; what an algorithm has sent beside them; the info (round 0 if the server sends
        none); and whether metric states are asked for.

    Raises:
        InstructionError: The message holds what no server of this package sends.
        LightningFLError: There is not exactly one array record, or the exchange cannot read it.
    """
    record = _weights(message)
    info = RoundInfo(
        read_seed(message),
        read_round(message),
        client_id,
        names("sampled", _config(message, "sampled", [])) if exchange.tells_sampled else (),
    )
    asked = flag(METRIC_STATES, _config(message, METRIC_STATES, False))
    arrays, extras = parted(from_record(record))
    try:
        return exchange.from_server(arrays, replace(info, held=held or {})), extras, info, asked
    except LightningFLError:
        raise
    except Exception as error:
        raise InstructionError(
            f"the server's weights, round {info.server_round}: {exchange!r} cannot read"
            f" {shown(list(arrays)[:5])}: {shown(described(error), 400)}"
        ) from error


def read_weights(message: Message) -> Arrays:
    """Read the arrays that the server sent, whatever exchange they are of.

    Raises:
        InstructionError: No server of this package sends them.
        LightningFLError: There is not exactly one array record, or one is not what it claims.
    """
    return from_record(_weights(message))


def _weights(message: Message) -> ArrayRecord:
    records = records_of(message.content, ArrayRecord)
    if len(records) != 1:
        raise LightningFLError(
            f"a {shown(message.metadata.message_type)} message must hold exactly one ArrayRecord, the global"
            f" weights. Got {len(records)}: {shown(list(records)[:5])}."
        )
    record = next(iter(records.values()))
    check_arrays(record)
    return record


def read_seed(message: Message) -> int:
    """Read the seed of the run; 0 if the server sends none.

    Raises:
        InstructionError: It is no such number.
    """
    return bounded_integer("run-seed", _config(message, "run-seed", 0), MOST_SEED)


def read_round(message: Message) -> int:
    """Read which round it is; 0 if the server does not tell.

    Raises:
        InstructionError: It is no such number.
    """
    return bounded_integer("server-round", _config(message, "server-round", 0), MOST_ROUND)


def read_max_rounds(message: Message) -> int:
    """Read how many rounds the run has in all; 0 if the server does not tell.

    Raises:
        InstructionError: It is no such number.
    """
    return bounded_integer("max-rounds", _config(message, "max-rounds", 0), MOST_ROUND)


def read_stage(message: Message) -> str:
    """Read which stage an evaluation is of, ``"validate"`` or ``"test"``; the first if the server is silent.

    Raises:
        InstructionError: It is another.
    """
    return choice(STAGE, _config(message, STAGE, "validate"), ("validate", "test"))


def read_settings(message: Message) -> dict[str, object]:
    """Read all that the server's configuration holds."""
    return {k: v for r in records_of(message.content, ConfigRecord).values() for k, v in r.items()}


def read_run_id(message: Message, context: Context) -> str:
    """Tell which run a message belongs to: as the server's configuration says, else Flower's run id.

    The server's own outlives it: a run that goes on after a kill is another run to Flower.

    Raises:
        InstructionError: It is no name.
    """
    return name("run-id", _config(message, "run-id", context.run_id))


def read_counted(message: Message) -> int | None:
    """Read in which round this client's update counted last, 0 for none; None if the server does not tell.

    Raises:
        InstructionError: It is no such number.
    """
    value = _config(message, COUNTED, None)
    return None if value is None else bounded_integer(COUNTED, value, MOST_ROUND)


def _config(message: Message, key: str, default: Any) -> Any:
    """Give what the server's configuration holds under a key."""
    for record in records_of(message.content, ConfigRecord).values():
        if key in record:
            return record[key]
    return default


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
