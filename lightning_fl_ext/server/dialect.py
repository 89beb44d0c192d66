"""Flower's own strategies read numpy's dtypes only: bfloat16 and float8 weights go to them as float32."""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.records import RAW_STYPE


def needs_translation(record: ArrayRecord) -> bool:
    """Tell whether a record holds arrays that Flower's own strategies cannot read."""
    return any(array.stype == RAW_STYPE for array in record.values())


def readable(record: ArrayRecord) -> ArrayRecord:
    """Give the record with such arrays widened to float32, which holds their values exactly."""
    return ArrayRecord(
        {
            name: next(iter(to_record({name: _widen(from_record(ArrayRecord({name: array})))}).values()))
            if array.stype == RAW_STYPE
            else array
            for name, array in record.items()
        }
    )


def readable_reply(reply: Message) -> Message:
    """Give a reply with such arrays widened."""
    content = RecordDict(
        {k: readable(r) if isinstance(r, ArrayRecord) else r for k, r in reply.content.items()}
    )
    wide = Message(content, reply_to=reply)
    wide.__dict__["_metadata"] = reply.metadata
    return wide


def put_back(messages: list[Message], given: ArrayRecord, record: ArrayRecord) -> None:
    """In messages that a strategy made, put the true record where it passed on the readable one."""
    for message in messages:
        for key, value in list(message.content.items()):
            if value is given:
                message.content[key] = record


def _widen(arrays: Arrays) -> NDArray[Any]:
    return next(iter(arrays.values())).astype("float32")
