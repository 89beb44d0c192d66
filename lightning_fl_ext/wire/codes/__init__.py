"""Codes for probabilistic masks: a client's mask up, the server's θ down, as self-checking bytes."""

from __future__ import annotations

from lightning_fl_ext.wire.codes.change import (
    CountedRound,
    base_of,
    decode_change,
    encode_counts_change,
    encode_relay,
    encode_same,
    encode_sum_change,
    theta_digest,
)
from lightning_fl_ext.wire.codes.fixed_point import sample_mask, to_fixed_point
from lightning_fl_ext.wire.codes.frame import MaskCodeError, MaskKey
from lightning_fl_ext.wire.codes.masks import MASK_CODES, MaskCode, check_code, decode_mask, encode_mask
from lightning_fl_ext.wire.codes.theta import decode_theta, encode_theta

__all__ = [
    "MASK_CODES",
    "CountedRound",
    "MaskCode",
    "MaskCodeError",
    "MaskKey",
    "base_of",
    "check_code",
    "decode_change",
    "decode_mask",
    "decode_theta",
    "encode_counts_change",
    "encode_mask",
    "encode_relay",
    "encode_same",
    "encode_sum_change",
    "encode_theta",
    "sample_mask",
    "theta_digest",
    "to_fixed_point",
]
