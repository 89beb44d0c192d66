"""The one place that touches names Flower does not document."""

from __future__ import annotations

import copy
from types import FunctionType, NoneType
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run as Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1
"""The id under which Flower's SuperLink sends error replies in a node's name."""

CLIENT_APP_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION

NOT_REACHED = frozenset(
    {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE}
)
"""Codes of the errors by which Flower tells that there is no reply; all others come from the client."""

_UNCHANGEABLE = frozenset({bool, bytes, float, int, str, FunctionType, NoneType})
_MADE_OF_ATTRIBUTES = frozenset(
    {Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict}
)


def copied(value: Any) -> Any:
    """Copy a message, a context, or a part of them.

    As ``copy.deepcopy`` does, in a fraction of its time: what Flower's objects are made of is known.
    """
    kind: Any = type(value)
    if kind in _UNCHANGEABLE:
        return value
    if kind in _MADE_OF_ATTRIBUTES:
        made = kind.__new__(kind)
        made.__dict__.update(copied(value.__dict__))
        return made
    if kind is dict:
        return {k: v if type(v) in _UNCHANGEABLE else copied(v) for k, v in value.items()}
    if kind in (list, tuple):
        return kind(value if _UNCHANGEABLE.issuperset(map(type, value)) else map(copied, value))
    return copy.deepcopy(value)


def ensure_identity() -> None:
    """Give this process an identity, without which Flower refuses to construct a `Message`.

    Flower's own runtimes set it; where one has, it stays.
    """
    state: Any = TaskIdentity
    if state._task_id is None:
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that Flower's SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def node_unavailable(instruction: Message) -> Message:
    """Answer in the name of a node that cannot, as Flower's SuperLink does."""
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node unavailable"), reply_to=instruction)
    reply.metadata.__dict__["_src_node_id"] = SERVER_NODE_ID
    return reply


def empty_run(run_id: int) -> Run:
    """Describe a run that no SuperLink knows."""
    return Run.create_empty(run_id)


def described_metadata(message: Message) -> dict[str, Any]:
    """Tell a message's metadata as plain values."""
    return dict(message.metadata.__dict__)


def restored_message(content: RecordDict, metadata: dict[str, Any]) -> Message:
    """Make the message anew that metadata was told of, and this process one of the node it was sent to."""
    ensure_identity()
    restored = Message(content, metadata["_dst_node_id"], metadata["_message_type"])
    restored.metadata.__dict__.update(metadata)
    return restored
