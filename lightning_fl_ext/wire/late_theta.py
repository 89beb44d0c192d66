"""θ that is not decoded before the model says how large it may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire.codes import MaskKey, decode_theta
from lightning_fl_ext.wire.codes.frame import unwrap
from lightning_fl_ext.wire.mask_names import COUNTS, TRIALS

DECODED_AT_ONCE = 2**20
"""Masked parameters up to which θ is decoded when it comes: that takes some tens of megabytes at most."""


def theta_arrays(theta: ThetaCounts) -> dict[str, NDArray[Any]]:
    """Give θ as named arrays."""
    return {COUNTS: theta.counts, TRIALS: np.array(theta.trials)}


class LateTheta(Mapping[str, NDArray[Any]]):
    """The arrays of :func:`theta_arrays`, and others; θ is decoded when it is first looked at.

    A payload of some bytes may say "all alike" of billions of parameters, so its length bounds nothing, and
    whoever knows the model compares `size` with it first.

    Args:
        payload: θ as it came.
        size: The number of masked parameters that came with it.
        key: Of the server.
        rest: What came besides.

    Raises:
        MaskCodeError: The payload's header is damaged, or of another round, run or model.
    """

    def __init__(self, payload: bytes, size: int, key: MaskKey, rest: Arrays) -> None:
        unwrap(payload, key)
        self.payload, self.size, self.key, self.rest = payload, size, key, rest
        if size <= DECODED_AT_ONCE:
            self._theta  # noqa: B018  # complains now, if it does

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._theta[name] if name in (COUNTS, TRIALS) else self.rest[name]

    def __iter__(self) -> Iterator[str]:
        return iter([COUNTS, TRIALS, *self.rest])

    def __len__(self) -> int:
        return 2 + len(self.rest)

    @cached_property
    def _theta(self) -> dict[str, NDArray[Any]]:
        return theta_arrays(decode_theta(self.payload, self.size, self.key))


def number_of_masked(arrays: Arrays) -> int:
    """Give the number of masked parameters, without decoding θ."""
    return arrays.size if isinstance(arrays, LateTheta) else int(arrays[COUNTS].size)
