"""What is on the wire, in place of what strategies see: the exchange's server half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.wire import Exchange, Held, RoundInfo, from_record, to_record
from lightning_fl_ext.wire.typed_records import records_of


class PayloadCodec:
    """Writes a round's global arrays down for the clients, and reads what they wrote.

    Args:
        exchange: What of the model travels, and in which code.
        arrays: The global arrays.
        info: The run's seed, the round and the clients asked.
    """

    def __init__(self, exchange: Exchange, arrays: Arrays, info: RoundInfo) -> None:
        self.exchange = exchange
        self.arrays = arrays
        self.info = info
        self.like = exchange.like(arrays)
        self._whole: ArrayRecord | None = None
        self._sent: dict[int, ArrayRecord] = {}

    def encode_into(
        self,
        messages: Sequence[Message],
        given: ArrayRecord,
        record: ArrayRecord,
        config: ConfigRecord,
        held: Mapping[int, Held] | None = None,
    ) -> None:
        """Make messages ready to send.

        Args:
            messages: As a strategy made them.
            given: What the strategy was given as the global arrays, and passed on.
            record: The global arrays as they are.
            config: What the strategy was given as the config, and passed on.
            held: What some of the clients hold, by node.
        """
        if self.exchange.tells_sampled:
            config["sampled"] = list(self.info.sampled)
        outgoing = self.exchange.to_client(self.arrays, self.info)
        self._whole = whole = record if outgoing is self.arrays else to_record(outgoing, self.exchange.coded)
        changes: dict[int, ArrayRecord] = {}
        for message in messages:
            own, wire = (held or {}).get(node := message.metadata.dst_node_id), whole
            if own is not None:
                if id(own) not in changes:
                    changes[id(own)] = self._change(own, outgoing) or whole
                wire = changes[id(own)]
            self._sent[node] = wire
            content = message.content.items()  # the strategy may have given one to all messages
            coded = wire is not record
            message.content = RecordDict({k: _swapped(value, given, wire, coded) for k, value in content})

    def whole(self, message: Message) -> Message | None:
        """Make a message again that needs nothing of what its client holds; None if it was so already."""
        sent, whole, told = self._sent[message.metadata.dst_node_id], self._whole, message.metadata
        if whole is None or sent is whole:
            return None
        content = RecordDict({k: _swapped(value, sent, whole, True) for k, value in message.content.items()})
        return Message(content, told.dst_node_id, told.message_type, group_id=told.group_id)

    def _change(self, held: Held, outgoing: Arrays) -> ArrayRecord | None:
        """Write for a client that holds something, if that is shorter than what stands alone."""
        change = self.exchange.to_holder(self.arrays, self.info, held)
        if change is None or _size(change) >= _size(outgoing):
            return None
        return to_record(change, self.exchange.coded)

    def decode(self, reply: Message, client_id: str) -> None:
        """In a train reply, put arrays where the client wrote a code.

        Args:
            reply: A message with content.
            client_id: The id by which the client knows itself.

        Raises:
            Rejected: It cannot be read.
        """
        records = records_of(reply.content, ArrayRecord)
        if not self.exchange.coded or len(records) != 1:
            return
        ((name, record),) = records.items()
        try:
            arrays = self.exchange.from_client(
                from_record(record), self.arrays, replace(self.info, client_id=client_id)
            )
        except LightningFLError as error:
            raise Rejected(Reason.UNDECODABLE, name, got=str(error)) from None
        reply.content[name] = to_record(arrays)


def _swapped(value: Any, given: ArrayRecord, wire: ArrayRecord, coded: bool) -> Any:
    """Give what is on the wire in place of what a strategy was given; coded, also where more is beside it."""
    if value is given:
        return wire
    if not coded or not isinstance(value, ArrayRecord) or not _holds(value, given):
        return value
    return ArrayRecord({**wire, **{name: array for name, array in value.items() if name not in given}})


def _holds(record: ArrayRecord, given: ArrayRecord) -> bool:
    """Tell a record that a strategy has put more beside the global arrays into."""
    return all(name in record and record[name] is array for name, array in given.items())


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
