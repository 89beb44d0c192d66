"""References written from the definitions, in exact fractions, and both sets of loops."""

import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lightning_fl_ext.aggregation import kernels
from lightning_fl_ext.aggregation.kernels import Kernels

sys.path.insert(0, str(Path(__file__).parent))  # tests import the modules beside them

HIGH, LOW = Fraction(1, 2**8), Fraction(1, 2**44)


def _round_to(exact: Fraction, dtype: Any) -> Fraction:
    """Round to nearest, half to even, on the grid of a floating dtype (IEEE 754, section 4.3.1)."""
    info = ml_dtypes.finfo(dtype)
    exponent = info.minexp
    while exact and abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - info.nmant)
    return round(exact / unit) * unit


def _binned_mean(updates: Sequence[tuple[Any, int]], dtype: Any) -> Fraction:
    """Compute the contract's mean of numbers: every term on the grid of 2^-44, the rest exact."""
    total = Fraction(0)
    for value, weight in updates:
        whole = np.float64(value)
        parts = [Fraction(float(whole))]
        if np.dtype(dtype) == np.float64:  # 26 bits, and the other 27
            first = (whole.view(np.uint64) >> np.uint64(27) << np.uint64(27)).view(np.float64)
            parts = [Fraction(float(first)), Fraction(float(whole - first))]
        for part in parts:
            high = round(weight * part / HIGH) * HIGH
            total += high + round((weight * part - high) / LOW) * LOW
    return _round_to(total / sum(weight for _, weight in updates), dtype)


@pytest.fixture(scope="session")
def round_to() -> Callable[[Fraction, Any], Fraction]:
    return _round_to


@pytest.fixture(scope="session")
def binned_mean() -> Callable[[Sequence[tuple[Any, int]], Any], Fraction]:
    return _binned_mean


@pytest.fixture(scope="session")
def same_bits() -> Callable[[Mapping[str, Any], Mapping[str, Any]], bool]:
    def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
        return list(left) == list(right) and all(
            (left[k].dtype, left[k].shape, left[k].tobytes())
            == (right[k].dtype, right[k].shape, right[k].tobytes())
            for k in left
        )

    return same


@pytest.fixture(scope="session")
def fused() -> Kernels:
    """The compiled loops, once a session: compilation takes seconds."""
    pytest.importorskip("numba")
    compiled = kernels._fused()
    assert compiled is not None
    return compiled


@pytest.fixture(params=["numpy", "fused"])
def loops(request: pytest.FixtureRequest) -> Kernels:
    return kernels._BLOCKED if request.param == "numpy" else request.getfixturevalue("fused")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernels], None]:
    """Make every `ExactMean` of the test use given loops, in blocks of 7, on threads even when small."""
    from lightning_fl_ext.aggregation import float_sums

    def use(loops: Kernels) -> None:
        monkeypatch.setattr(float_sums, "kernels_for", lambda size: loops._replace(block=7))
        monkeypatch.setattr(float_sums, "THREADED_FROM", 0)

    return use
