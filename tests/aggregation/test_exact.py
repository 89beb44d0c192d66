from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise, permutations
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _exact import FIVE, Same, Update, mean_of, model
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation import AggregationOverflow, ExactMean, InvalidUpdate, exact_mean
from lightning_fl_ext.aggregation.kernels import Kernels

Round = Callable[[Fraction, Any], Fraction]

FLOATS = [
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    np.float32,
    np.float64,
]
DTYPES = [*FLOATS, np.complex64, np.complex128, np.int8, np.int64, np.uint64, np.bool_]

weights = st.integers(1, 10**6) | st.sampled_from([1, 2, 2**20])


def numbers_of(dtype: Any) -> st.SearchStrategy[float]:
    """Numbers of either sign and magnitudes from 1e-30 to 1e4 (or the dtype's largest), and round ones."""
    top = min(1e4, float(ml_dtypes.finfo(dtype).max))
    spread = st.builds(lambda m, e: m * 10.0**e, st.floats(-9.9, 9.9), st.integers(-30, 3))
    round_ones = st.integers(-64, 64).map(lambda n: n / 16)
    numbers = (spread | round_ones).filter(lambda x: abs(x) <= top)
    return numbers.map(lambda x: float(np.array(x).astype(dtype)))


@st.composite
def models(draw: st.DrawFn) -> list[Update]:
    """Updates of one drawn model: some arrays of any dtype and small shape."""
    entries = draw(
        st.dictionaries(
            st.sampled_from("abcde"),
            st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
            min_size=1,
            max_size=3,
        )
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))

    def array(dtype: Any, shape: Sequence[int]) -> Any:
        size = (2, *shape)
        spread = generator.uniform(-9, 9, size) * 10.0 ** generator.integers(-30, 2, size)
        if np.dtype(dtype).kind in "iu":
            info = np.iinfo(dtype)
            return generator.integers(info.min, info.max, shape, dtype, endpoint=True)
        if np.dtype(dtype).kind == "b":
            return np.asarray(generator.random(shape) < 0.5)
        return (spread[0] + 1j * spread[1] if np.dtype(dtype).kind == "c" else spread[0]).astype(dtype)

    return [
        ({name: array(*entry) for name, entry in entries.items()}, draw(weights))
        for _ in range(draw(st.integers(2, 6)))
    ]


# --- the same bits ---------------------------------------------------------------------------------------


def test_five_updates_in_all_120_orders_give_equal_bits(same_bits: Same) -> None:
    expected = mean_of(FIVE).result()
    assert all(same_bits(mean_of(order).result(), expected) for order in permutations(FIVE))


def test_a_float32_sum_would_not_pass_that_test() -> None:
    def plain(order: Sequence[Update]) -> bytes:
        total = sum(weight for _, weight in order)
        result: Any = sum(arrays["weight"] * np.float32(weight / total) for arrays, weight in order)
        return bytes(result.tobytes())

    assert len({plain(order) for order in permutations(FIVE)}) > 1


@given(updates=models(), data=st.data())
def test_any_order_grouping_and_tree_of_merges_gives_equal_bits(
    same_bits: Same, updates: list[Update], data: st.DataObject
) -> None:
    expected = mean_of(updates).result()
    order = data.draw(st.permutations(updates))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1))))
    groups = [order[a:b] for a, b in pairwise([0, *cuts, len(order)])]
    partial = [mean_of(group, at_once=data.draw(st.integers(1, 3))) for group in groups]
    while len(partial) > 1:
        other = partial.pop(data.draw(st.integers(0, len(partial) - 1)))
        partial[data.draw(st.integers(0, len(partial) - 1))].merge(other)
    assert same_bits(partial[0].result(), expected)
    assert partial[0].num_updates == len(updates)
    assert partial[0].total_weight == sum(weight for _, weight in updates)


@pytest.mark.parametrize("threads", [1, 2, 4, None])
def test_threads_and_loops_give_equal_bits(
    same_bits: Same,
    loops: Kernels,
    small_blocks: Callable[[Kernels], None],
    threads: int | None,
) -> None:
    expected = mean_of(FIVE).result()
    small_blocks(loops)
    for at_once in (1, 4, 5):
        assert same_bits(mean_of(FIVE, threads, at_once).result(), expected)


@given(updates=models())
def test_averaging_at_once_gives_the_bits_of_adding(same_bits: Same, updates: list[Update]) -> None:
    assert same_bits(exact_mean(updates[0][0], iter(updates)), mean_of(updates).result())


@pytest.mark.parametrize("threads", [1, 2, None])
def test_averaging_at_once_gives_every_block_the_words_it_needs(
    same_bits: Same, loops: Kernels, small_blocks: Callable[[Kernels], None], threads: int | None
) -> None:
    updates = [(arrays, 10 ** (2 * seed % 7)) for seed, (arrays, _) in enumerate(FIVE)]
    expected = mean_of(updates).result()
    words = set()

    def fold(total: Any, high: Any, *terms: Any) -> Any:
        words.add(1 if high is None else 2)
        return loops.fold(total, high, *terms)

    small_blocks(loops._replace(fold=fold))
    assert same_bits(exact_mean(updates[0][0], updates, threads=threads), expected)
    assert words == {1, 2}


def test_a_large_model_takes_the_fused_loops_on_threads_to_the_same_bits(
    fused: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    updates: list[Update] = [({"w": generator.standard_normal(300_000, np.float32)}, n) for n in (3, 999, 77)]
    fast = mean_of(updates, threads=2)
    assert fast._floats._kernels is fused
    monkeypatch.setattr("lightning_fl_ext.aggregation.kernels.FUSED_FROM", 10**9)
    assert mean_of(updates, threads=1).result()["w"].tobytes() == fast.result()["w"].tobytes()
    for bad in (np.nan, np.inf, 3e38):
        spoilt = updates[0][0]["w"].copy()
        spoilt[[7, 200_001]] = bad
        with pytest.raises((InvalidUpdate, AggregationOverflow)):
            fast.add_many([*updates, ({"w": spoilt}, 5)])
        assert mean_of(updates).result()["w"].tobytes() == fast.result()["w"].tobytes()


@given(models())
def test_a_result_can_be_read_in_between_and_changes_nothing(same_bits: Same, updates: list[Update]) -> None:
    mean = mean_of(updates[:1])
    first = mean.result()
    for array in first.values():
        array[...] = 1
    mean.add_many(updates[1:])
    assert same_bits(mean.result(), mean_of(updates).result())


# --- the value -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_the_mean_is_the_fraction_rounded_once_wherever_the_bound_promises_it(
    round_to: Round, binned_mean: Any, dtype: Any, data: st.DataObject
) -> None:
    updates = data.draw(st.lists(st.tuples(numbers_of(dtype), weights), min_size=1, max_size=8))
    total = sum(weight for _, weight in updates)
    exact = sum((weight * Fraction(value) for value, weight in updates), Fraction(0)) / total
    result = mean_of([({"w": np.array([value], dtype)}, weight) for value, weight in updates]).result()["w"]
    mean = Fraction(float(result[0]))

    assert result.dtype == dtype
    assert mean == binned_mean(updates, dtype)
    per_term = Fraction(1, 2**44) if dtype is np.float64 else Fraction(1, 2**45)
    slack = len(updates) * per_term / total
    assert round_to(exact - slack, dtype) <= mean <= round_to(exact + slack, dtype)
    if all((weight * Fraction(value) * 2**44).denominator == 1 for value, weight in updates):
        assert mean == round_to(exact, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("total", [2**24 + 1, 2**27 - 1, 2**27 + 1, 2**29 + 1])
def test_large_total_weights_are_divided_by_exactly(binned_mean: Any, dtype: Any, total: int) -> None:
    counts = [2**26] * (total // 2**26) + [total % 2**26]
    generator = np.random.default_rng(total)
    rows = [(generator.integers(-9, 9, 20) / 8 + 1 / 3).astype(dtype) for _ in counts]
    updates: list[Update] = [({"w": row}, count) for row, count in zip(rows, counts, strict=True)]
    expected = [
        binned_mean(list(zip(column, counts, strict=True)), dtype) for column in zip(*rows, strict=True)
    ]
    for result in (exact_mean(updates[0][0], updates), mean_of(updates).result()):
        assert [Fraction(float(number)) for number in result["w"]] == expected


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_arrays_are_two_real_ones(dtype: Any) -> None:
    generator = np.random.default_rng(5)
    parts = generator.standard_normal((3, 2, 4, 2))
    waves = [(real + 1j * imaginary).astype(dtype) for real, imaginary in parts]
    result = mean_of([({"w": wave}, n) for n, wave in enumerate(waves, 1)]).result()["w"]
    apart = mean_of([({"r": w.real, "i": w.imag}, n) for n, w in enumerate(waves, 1)]).result()
    assert result.dtype == dtype
    assert (result.real == apart["r"]).all()
    assert (result.imag == apart["i"]).all()


def test_buffers_keep_their_dtypes_and_get_the_contracts_values() -> None:
    def update(batches: int, mask: list[bool], variance: float) -> dict[str, Any]:
        return {
            "num_batches_tracked": np.array(batches),
            "mask": np.array(mask),
            "running_var": np.array([variance], np.float32),
            "half": np.array([variance], np.float16),
        }

    result = mean_of(
        [
            (update(2**60 + 1, [True, True, False], 0.1), 1),
            (update(2**60 + 2, [True, False, False], 0.2), 1),
            (update(2**60 + 4, [False, True, False], 0.4), 2),
        ]
    ).result()
    assert {name: array.dtype.name for name, array in result.items()} == {
        "num_batches_tracked": "int64",
        "mask": "bool",
        "running_var": "float32",
        "half": "float16",
    }
    assert result["num_batches_tracked"] == 2**60 + 3  # 2^60 + 11/4
    assert result["mask"].tolist() == [False, True, False]  # 2 of 4 votes are a tie
    assert result["running_var"] == np.float32(0.275)
    assert result["half"] == np.float16(0.275)


def test_many_small_numbers_in_a_narrow_dtype_do_not_drift() -> None:
    for dtype, value in [(np.float16, 1.0), (np.float32, 0.1), (ml_dtypes.bfloat16, 0.3)]:
        array = np.full(3, value, dtype)
        mean = mean_of([({"w": array}, 1)] * 1000)
        assert mean.result()["w"].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_update_comes_back_as_it_went_in_down_to_the_quantum(dtype: Any) -> None:
    info = ml_dtypes.finfo(dtype)
    top = min(float(info.max), 2.0**42)
    array = np.array([0, 1, -1.5, top, -top, 2.0**-6, max(float(info.eps), 2.0**-44)]).astype(dtype)
    assert mean_of([({"w": array}, 1)]).result()["w"].tobytes() == array.tobytes()
    below = np.array([1e-30, -1e-30], np.float32)
    assert mean_of([({"w": below}, 1000)]).result()["w"].tolist() == [0, 0]


def test_float32_agrees_with_numpy_in_float64() -> None:
    updates = [(model(seed), weight) for seed, weight in zip(range(20), range(1, 2000, 100), strict=True)]
    weights_, values = [n for _, n in updates], [arrays["double"] for arrays, _ in updates]
    reference = np.average(np.stack(values), axis=0, weights=weights_)
    np.testing.assert_allclose(mean_of(updates).result()["double"], reference, rtol=1e-13, atol=2.0**-44)


# --- inputs ----------------------------------------------------------------------------------------------


def test_memory_layout_does_not_matter(same_bits: Same) -> None:
    array = np.random.default_rng(6).standard_normal((6, 4)).astype(np.float32)
    padded = np.zeros((12, 9), np.float32)
    padded[::2, 1::2] = array
    odd = np.frombuffer(b"x" + array.tobytes(), np.float32, offset=1).reshape(6, 4)
    fixed = array.copy()
    fixed.flags.writeable = False
    expected = mean_of([({"w": array}, 3)]).result()
    for layout in (np.asfortranarray(array), padded[::2, 1::2], array[::-1][::-1], odd, fixed):
        before = layout.tobytes()
        assert same_bits(mean_of([({"w": layout}, 3)]).result(), expected)
        assert layout.tobytes() == before
    assert fixed.flags.writeable is False
    wave = np.linspace(0, 1, 12).astype(np.complex64)
    assert same_bits(
        mean_of([({"w": wave[::3]}, 3)]).result(), mean_of([({"w": wave[::3].copy()}, 3)]).result()
    )
    assert array.flags.writeable is True
    wave = np.linspace(0, 1, 12).astype(np.complex64)[::3]
    assert mean_of([({"w": wave}, 3)]).result()["w"].tolist() == wave.tolist()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_empty_arrays_work(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.ones(shape, dtype)
    result = mean_of([({"x": array}, 2), ({"x": array}, 3)]).result()["x"]
    assert (result.shape, result.dtype, result.tobytes()) == (shape, array.dtype, array.tobytes())


def test_the_result_follows_the_global_models_order_whatever_the_updates() -> None:
    like = {"z": np.zeros(1), "n": np.array(1), "a": np.zeros(1)}
    mean = ExactMean(like)
    mean.add({"n": np.array(1), "a": np.ones(1), "z": np.full(1, 2.0)}, 1)
    other = ExactMean(dict(reversed(like.items())))
    other.merge(mean)
    assert list(mean.result()) == ["z", "n", "a"]
    assert list(other.result()) == ["a", "n", "z"]
    assert (float(other.result()["a"][0]), float(other.result()["z"][0])) == (1, 2)


def test_a_model_without_arrays_has_a_mean() -> None:
    mean = ExactMean({})
    mean.add({}, 1)
    assert mean.result() == {}
