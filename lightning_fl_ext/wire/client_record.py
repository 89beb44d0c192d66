"""The record ``client`` of a reply: what a client says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from lightning_fl_ext.wire.typed_records import records_of

CLIENT = "client"
"""The record's name."""


def client_record(content: RecordDict) -> Mapping[str, Any]:
    """Give what the client says about itself; nothing, if it is not one of this package's."""
    return records_of(content, ConfigRecord).get(CLIENT) or {}


def declared_id(content: RecordDict) -> str:
    """Give the client id that a reply declares; ``""`` if it declares none.

    Example:
        >>> declared_id(RecordDict({"client": ConfigRecord({"client-id": "site-a"})}))
        'site-a'
    """
    return str(client_record(content).get("client-id", ""))
