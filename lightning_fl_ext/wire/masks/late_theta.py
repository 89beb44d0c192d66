"""θ that is not decoded before the model says how large it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire.codes import MaskKey, base_of, decode_change, decode_theta, theta_digest
from lightning_fl_ext.wire.exchange import NotHeldError
from lightning_fl_ext.wire.masks.names import COUNTS, TRIALS

DECODED_AT_ONCE = 2**20
"""Masked parameters up to which θ is decoded when it comes: that takes some tens of megabytes at most."""


def theta_arrays(theta: ThetaCounts) -> dict[str, NDArray[Any]]:
    """Give θ as named arrays."""
    return {COUNTS: theta.counts, TRIALS: np.array(theta.trials)}


class LateTheta(Mapping[str, NDArray[Any]]):
    """The arrays of :func:`theta_arrays`, and others; θ is decoded when it is first looked at.

    A payload of some bytes may say "all alike" of billions of parameters, so its length bounds nothing, and
    whoever knows the model compares `size` with it first. One that builds on an earlier θ may build on that
    which a module is made with, and is then read when the module is there.

    Args:
        payload: θ as it came.
        size: The number of masked parameters that came with it.
        key: Of the server.
        rest: What came besides.
        held: The θ that is held from before, if any.

    Raises:
        MaskCodeError: The payload's header is damaged, or of another round, run or model.
    """

    def __init__(
        self, payload: bytes, size: int, key: MaskKey, rest: Arrays, held: ThetaCounts | None = None
    ) -> None:
        self._base = base_of(payload, key)
        self.payload, self.size, self.key, self.rest = payload, size, key, rest
        self._held = held if self._fits(held) else None
        if size <= DECODED_AT_ONCE and (self._base is None or self._held is not None):
            self._theta  # noqa: B018  # complains now, if it does

    def offer(self, own: Callable[[], ThetaCounts]) -> None:
        """Offer a θ to build on, which is made if one is missing.

        Raises:
            NotHeldError: It is not that one either.
        """
        if self._base is not None and self._held is None:
            theta = own()
            self._held = theta if self._fits(theta) else None
            self._theta  # noqa: B018

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._theta[name] if name in (COUNTS, TRIALS) else self.rest[name]

    def __iter__(self) -> Iterator[str]:
        return iter([COUNTS, TRIALS, *self.rest])

    def __len__(self) -> int:
        return 2 + len(self.rest)

    @cached_property
    def _theta(self) -> dict[str, NDArray[Any]]:
        if self._base is None:
            return theta_arrays(decode_theta(self.payload, self.size, self.key))
        if self._held is None:
            raise NotHeldError(
                f"round {self.key.round}: the server sent a change of the θ {self._base.hex()},"
                f" {NotHeldError.words}: it has missed a round, or was started again. A `FederatedTrainer`"
                " sends it the whole at once; another server has to."
            )
        return theta_arrays(decode_change(self.payload, self._held, self.key))

    def _fits(self, theta: ThetaCounts | None) -> bool:
        return theta is not None and theta.counts.size == self.size and theta_digest(theta) == self._base


def number_of_masked(arrays: Arrays) -> int:
    """Give the number of masked parameters, without decoding θ."""
    return arrays.size if isinstance(arrays, LateTheta) else int(arrays[COUNTS].size)
