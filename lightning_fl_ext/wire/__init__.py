"""Exchanges, and tensors to Flower records and back."""

from lightning_fl_ext.lazy import import_renamed
from lightning_fl_ext.wire.exchange import Exchange, Held, NotHeldError, RoundInfo, StateMismatchError
from lightning_fl_ext.wire.masks.exchange import MaskExchange
from lightning_fl_ext.wire.records import PayloadError, from_record, to_record
from lightning_fl_ext.wire.tensors import to_numpy, to_torch
from lightning_fl_ext.wire.weight_exchange import WeightExchange

__all__ = [
    "Exchange",
    "Held",
    "MaskExchange",
    "NotHeldError",
    "PayloadError",
    "RoundInfo",
    "StateMismatchError",
    "WeightExchange",
    "from_record",
    "to_numpy",
    "to_record",
    "to_torch",
]

__getattr__ = import_renamed(__name__, {"Trip": "RoundInfo"})
