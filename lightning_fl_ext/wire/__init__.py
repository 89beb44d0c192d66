"""Exchanges, and tensors to Flower records and back."""

from lightning_fl_ext.wire.exchange import Exchange, StateMismatchError, Trip, WeightExchange
from lightning_fl_ext.wire.mask_exchange import MaskExchange
from lightning_fl_ext.wire.records import PayloadError, from_record, to_record
from lightning_fl_ext.wire.tensors import to_numpy, to_torch

__all__ = [
    "Exchange",
    "MaskExchange",
    "PayloadError",
    "StateMismatchError",
    "Trip",
    "WeightExchange",
    "from_record",
    "to_numpy",
    "to_record",
    "to_torch",
]
