"""The packed code: one bit for each parameter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.wire.codes.fixed_point import sample_mask
from lightning_fl_ext.wire.codes.frame import MaskKey, altered


def encode(
    theta: NDArray[np.uint16], public: NDArray[np.uint16], key: MaskKey
) -> tuple[bytes, NDArray[np.bool_]]:
    """Draw the client's mask; give its bits, and the mask."""
    mask = sample_mask(theta, key)
    return np.packbits(mask).tobytes(), mask


def decode(body: bytes, public: NDArray[np.uint16], key: MaskKey) -> NDArray[np.bool_]:
    """Read the mask.

    Raises:
        MaskCodeError: There are too few or too many bits.
    """
    if len(body) != -(-public.size // 8):
        raise altered(f"expected {public.size} packed bits, got {len(body)} bytes")
    return np.unpackbits(np.frombuffer(body, dtype=np.uint8), count=public.size).astype(np.bool_)
