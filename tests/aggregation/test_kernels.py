import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lightning_fl_ext.aggregation import exact_mean, kernels
from lightning_fl_ext.aggregation.arithmetic import LIMIT
from lightning_fl_ext.aggregation.kernels import FUSED_FROM, Kernels, kernels_for

OUTPUTS = [
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
]


def read_only(values: Any) -> Any:
    values.flags.writeable = False
    return values


def random_sums(seed: int, size: int, scale: float) -> tuple[list[int], list[int]]:
    """Sums of high and low multiples."""
    generator = np.random.default_rng(seed)
    high = np.round(generator.standard_normal(size) * scale * 2**8).astype(np.int64)
    return high.tolist(), generator.integers(-(2**49), 2**49, size).tolist()


def near_midpoints(dtype: Any, count: int, size: int, seed: int) -> tuple[list[int], list[int]]:
    """Sums whose mean is a midpoint of the dtype's grid, or one quantum of the sum to either side."""
    generator = np.random.default_rng(seed)
    near = generator.uniform(0.3, 3.0, size).astype(np.float32).astype(dtype)
    far = np.nextafter(near, np.array(100, dtype))
    sums = [
        (Fraction(float(a)) + Fraction(float(b))) / 2 * count * int(generator.choice([-1, 1]))
        for a, b in zip(near, far, strict=True)
    ]
    high = [round(total * 2**8) for total in sums]
    low = [
        round((total - Fraction(h, 2**8)) * 2**44) + int(generator.integers(-1, 2))
        for total, h in zip(sums, high, strict=True)
    ]
    return high, low


def words(high: list[int], low: list[int]) -> tuple[Any, Any]:
    """The two words of sums: the number of low quanta modulo 2^64, and the high multiples."""
    total = [(h * 2**36 + rest + 2**63) % 2**64 - 2**63 for h, rest in zip(high, low, strict=True)]
    return np.array(total), np.array(high)


@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("count", [1, 2, 3, 64, 999_983, 2**43 - 1])
def test_mean_is_the_fraction_rounded_once(
    loops: Kernels, dtype: Any, count: int, round_to: Callable[[Fraction, Any], Fraction]
) -> None:
    cases = [random_sums(0, 40, 20.0 * min(count, 2**38)), random_sums(1, 20, 0.0)]
    if count < 2**40:
        cases.append(near_midpoints(dtype, count, 60, 2))
    for high, low in cases:
        total, second = words(high, low)
        out = np.empty(total.size, dtype)
        expected = [
            round_to((Fraction(h, 2**8) + Fraction(rest, 2**44)) / count, dtype)
            for h, rest in zip(high, low, strict=True)
        ]
        loops.mean(total, second, float(count), out)
        assert [Fraction(float(mean)) for mean in out] == expected
        if max(map(abs, high)) < 2**26:  # one word is enough
            loops.mean(total, None, float(count), out)
            assert [Fraction(float(mean)) for mean in out] == expected


@pytest.mark.parametrize("dtype", OUTPUTS)
def test_numpy_and_fused_means_have_equal_bits(fused: Kernels, dtype: Any) -> None:
    total, high = words(*random_sums(3, 5000, 1e4))
    total[:100] = high[:100] = 0
    for count in (1, 2, 7, 123_457, 2**43):
        for second in (high, None):
            with_numpy, compiled = np.empty(5000, dtype), np.empty(5000, dtype)
            kernels._BLOCKED.mean(total, second, float(count), with_numpy)
            fused.mean(total, second, float(count), compiled)
            assert with_numpy.tobytes() == compiled.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [1, 2])
def test_numpy_and_fused_folds_have_equal_bits(fused: Kernels, dtype: Any, number: int) -> None:
    generator = np.random.default_rng(4)
    scales = 10.0 ** generator.integers(-30, 4, 5000)
    values = read_only((generator.standard_normal(5000) * scales).astype(dtype))
    results = []
    for loops in (kernels._BLOCKED, fused):
        sums = np.zeros((number, 5000), np.int64)
        for weight in (1.0, 17.0, 999_983.0):
            loops.fold(*two(sums), (values,), (weight,))
        results.append(sums.tobytes())
    assert results[0] == results[1]


def two(sums: Any) -> tuple[Any, Any]:
    return sums[0], sums[1] if len(sums) == 2 else None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fold_sums_the_multiples_of_the_quanta(loops: Kernels, dtype: Any) -> None:
    sums = np.zeros((2, 3), np.int64)
    rows = [[1.25, 2.0**40, 2.0**-44], [-0.5, 2.0**-8, -(2.0**20)], [0, 0, 0], [0, 0, 0]]
    blocks = tuple(read_only(np.array(row, dtype)) for row in rows)
    loops.fold(sums[0], sums[1], blocks, (3.0, 2.0, 5.0, 5.0))
    exact = [Fraction(11, 4), 3 * Fraction(2) ** 40 + Fraction(1, 2**7), Fraction(3, 2**44) - 2**21]
    assert sums[1].tolist() == [round(total * 2**8) for total in exact]
    assert (sums[0].astype(np.uint64)).tolist() == [int(total * 2**44) % 2**64 for total in exact]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("position", [0, 1, 16, 99])
def test_fold_finds_the_largest_magnitude_wherever_it_is(loops: Kernels, dtype: Any, position: int) -> None:
    blocks = [np.linspace(-1, 1, 100).astype(dtype) for _ in range(4)]
    blocks[0][position], blocks[1][position], blocks[3][:] = 7.5, -8.5, -0.0
    values = tuple(read_only(block) for block in blocks)
    peaks = loops.fold(np.zeros(100, np.int64), None, values, (1.0, 2.0, 3.0, 4.0))
    assert list(peaks) == [7.5, 8.5, 1, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [1, 2])
def test_fold_of_four_blocks_is_four_folds_of_one(loops: Kernels, dtype: Any, number: int) -> None:
    generator = np.random.default_rng(7)
    blocks = [read_only(generator.standard_normal(101).astype(dtype)) for _ in range(4)]
    weights = (1.0, 999_983.0, 7.0, 2.0**20)
    at_once, one_by_one = np.zeros((2, number, 101), np.int64)
    loops.fold(*two(at_once), tuple(blocks), weights)
    for block, weight in zip(blocks, weights, strict=True):
        loops.fold(*two(one_by_one), (block,), (weight,))
    assert (at_once == one_by_one).all()
    assert at_once.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, "largest"])
@pytest.mark.parametrize("position", [0, 50, 99])
@pytest.mark.parametrize("number", [1, 2])
def test_a_bad_value_shows_in_the_peak_and_can_be_taken_out_again(
    loops: Kernels, dtype: Any, bad: Any, position: int, number: int
) -> None:
    sums = np.random.default_rng(8).integers(-(2**63), 2**63, (number, 100))
    before = sums.copy()
    values = np.linspace(-1, 1, 100).astype(dtype)
    values[position] = np.finfo(dtype).max if bad == "largest" else bad
    values[position - 1] *= 2
    peak = loops.fold(*two(sums), (read_only(values),), (999_983.0,))[0]
    assert not peak < LIMIT
    assert np.isfinite(peak) == (bad == "largest")
    assert (sums != before).any()
    loops.unfold(*two(sums), (values,), (999_983.0,))
    assert (sums == before).all()


def test_numpy_serves_small_models_and_numba_large_ones(
    fused: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_folded", 0)
    assert kernels_for(FUSED_FROM - 1) is kernels._BLOCKED
    assert kernels_for(FUSED_FROM) is fused


def test_numba_serves_small_models_too_once_much_was_folded(
    fused: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_folded", 0)
    monkeypatch.setattr(kernels, "COMPILE_AFTER", 50)
    rows = [({"w": np.full(10, value)}, 3) for value in (0.1, 0.7, -0.3)]
    with_numpy = exact_mean(rows[0][0], rows)
    assert kernels_for(10) is kernels._BLOCKED
    assert exact_mean(rows[0][0], rows)["w"].tobytes() == with_numpy["w"].tobytes()
    assert kernels_for(10) is fused
    assert exact_mean(rows[0][0], rows)["w"].tobytes() == with_numpy["w"].tobytes()


def test_without_numba_numpy_serves_all_models() -> None:
    program = (
        "import sys; sys.modules['numba'] = None\n"
        "from lightning_fl_ext.aggregation import kernels\n"
        "assert kernels.kernels_for(10**9) is kernels._BLOCKED"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
