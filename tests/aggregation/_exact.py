"""Models and updates of every dtype for the exact mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from lightning_fl_ext.aggregation import ExactMean

Update = tuple[dict[str, Any], int]
Same = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


def mean_of(updates: Sequence[Update], threads: int | None = None, at_once: int = 100) -> ExactMean:
    mean = ExactMean(updates[0][0], threads=threads)
    for start in range(0, len(updates), at_once):
        mean.add_many(updates[start : start + at_once])
    return mean


def model(seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-12, 4, (30, 3))
    weight = generator.standard_normal((30, 3)) * scale
    return {
        "weight": weight.astype(np.float32),
        "half": weight.astype(np.float16),
        "brain": weight.astype(ml_dtypes.bfloat16),
        "double": weight.reshape(-1),
        "wave": (weight + 1j * weight[::-1]).astype(np.complex64),
        "batches": generator.integers(0, 2**60, ()),
        "mask": generator.random(11) < 0.5,
        "empty": np.zeros((0, 4), np.float32),
    }


FIVE = [(model(seed), weight) for seed, weight in enumerate([1, 7, 100, 12_345, 999_983])]
