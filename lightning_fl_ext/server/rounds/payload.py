"""What is on the wire, in place of what strategies see: the exchange's server half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.wire import Exchange, RoundInfo, from_record, to_record
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

    def encode_into(
        self, messages: Sequence[Message], given: ArrayRecord, record: ArrayRecord, config: ConfigRecord
    ) -> None:
        """Make messages ready to send.

        Args:
            messages: As a strategy made them.
            given: What the strategy was given as the global arrays, and passed on.
            record: The global arrays as they are.
            config: What the strategy was given as the config, and passed on.
        """
        if self.exchange.tells_sampled:
            config["sampled"] = list(self.info.sampled)
        outgoing = self.exchange.to_client(self.arrays, self.info)
        wire = record if outgoing is self.arrays else to_record(outgoing, self.exchange.coded)
        for message in messages:
            for key, value in list(message.content.items()):
                if value is given:
                    message.content[key] = wire
                elif wire is not record and isinstance(value, ArrayRecord) and _holds(value, given):
                    beside = {name: array for name, array in value.items() if name not in given}
                    message.content[key] = ArrayRecord({**wire, **beside})

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


def _holds(record: ArrayRecord, given: ArrayRecord) -> bool:
    """Tell a record that a strategy has put more beside the global arrays into."""
    return all(name in record and record[name] is array for name, array in given.items())
