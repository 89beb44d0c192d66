"""Inputs made by integer arithmetic alone, so that they are the same everywhere."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.wire.codes import MaskKey


@dataclass
class Exchange:
    counts: ThetaCounts
    theta: NDArray[np.uint16]
    key: MaskKey

    @property
    def public(self) -> NDArray[np.uint16]:
        return self.counts.fixed_point()


def make_exchange(size: int, stratum: tuple[int, int] | None = None) -> Exchange:
    i = np.arange(size, dtype=np.uint64)
    noise = (i * np.uint64(2654435761) >> np.uint64(11)) % np.uint64(2**16)
    counts = ThetaCounts((noise * np.uint64(11) // np.uint64(2**16)).astype(np.uint16), trials=10)
    step = ((i * np.uint64(40503) >> np.uint64(3)) % np.uint64(4001)).astype(np.int64) - 2000
    theta = (counts.fixed_point().astype(np.int64) + step).clip(1, 65535).astype(np.uint16)
    return Exchange(counts, theta, MaskKey(run=7, round=3, model="digits", client="site-a", stratum=stratum))


@pytest.fixture
def exchange() -> Exchange:
    return make_exchange(3000)


@pytest.fixture
def exchange_of():
    return make_exchange
