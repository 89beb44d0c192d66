from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightning_fl_ext.aggregation import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.aggregation.arithmetic import LIMIT
from lightning_fl_ext.aggregation.float_sums import ONE_WORD, FloatSums
from lightning_fl_ext.aggregation.kernels import Kernels
from lightning_fl_ext.aggregation.structure import Entry

ENTRIES = {
    "a": Entry((20,), np.dtype(np.float32)),
    "b": Entry((3, 5), np.dtype(np.float64)),
    "c": Entry((9,), np.dtype(np.float16)),
    "d": Entry((4,), np.dtype(np.complex64)),
}


def update(seed: int, **changed: Any) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(entry.shape).astype(entry.dtype) for name, entry in ENTRIES.items()
    } | changed


def mean(sums: FloatSums, count: int) -> dict[str, Any]:
    out = {name: np.empty(entry.shape, entry.dtype) for name, entry in sums._entries.items()}
    sums.mean(count, out)
    return out


def bits(sums: FloatSums) -> tuple[bytes, bytes | None, dict[str, int]]:
    return sums._total.tobytes(), None if sums._high is None else sums._high.tobytes(), dict(sums._bounds)


def with_value(name: str, index: int, value: Any) -> dict[str, Any]:
    changed = update(9)
    changed[name].reshape(-1)[index] = value
    return changed


REFUSED = [(name, index) for name, last in [("a", 19), ("b", 14), ("c", 8), ("d", 3)] for index in (0, last)]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("name", "index"), REFUSED)
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_leaves_no_bit(
    loops: Kernels,
    small_blocks: Callable[[Kernels], None],
    threads: int,
    name: str,
    index: int,
    bad: float,
) -> None:
    small_blocks(loops)
    sums = FloatSums(ENTRIES, threads)
    sums.fold([(update(1), 7), (update(2), 999_983)])
    before = bits(sums)
    with pytest.raises(InvalidUpdate, match=f"update 2, array `{name}`: expected finite"):
        sums.fold([(update(3), 2), (update(4), 5), (with_value(name, index, bad), 3), (update(5), 1)])
    assert bits(sums) == before


@pytest.mark.parametrize(("name", "huge"), [("a", 3e38), ("b", 1e308), ("d", -1j * 2.0**42), ("a", 2.0**42)])
def test_overflow_is_refused_and_leaves_no_bit(
    loops: Kernels, small_blocks: Callable[[Kernels], None], name: str, huge: Any
) -> None:
    small_blocks(loops)
    sums = FloatSums(ENTRIES, 2)
    sums.fold([(update(1), 7)])
    before = bits(sums)
    with pytest.raises(AggregationOverflow, match=rf"update 1, array `{name}`.*expected under 2\^43"):
        sums.fold([(update(3), 2), (with_value(name, 0, huge), 2)])
    assert bits(sums) == before


def test_the_bound_adds_over_updates_and_blocks(
    small_blocks: Callable[[Kernels], None], loops: Kernels
) -> None:
    # No element comes near the limit; the largest of different blocks and updates together reach it.
    small_blocks(loops)
    left, right = np.zeros(20, np.float32), np.zeros(20, np.float32)
    left[0] = right[19] = 2.0**42
    entries = {"a": ENTRIES["a"]}
    sums = FloatSums(entries, 1)
    sums.fold([({"a": left}, 1)])
    before = bits(sums)
    with pytest.raises(AggregationOverflow, match="would reach 8"):
        sums.fold([({"a": right}, 1)])
    assert bits(sums) == before
    fresh = FloatSums(entries, 1)
    with pytest.raises(AggregationOverflow, match="update 1"):
        fresh.fold([({"a": left}, 1), ({"a": right}, 1)])
    assert not fresh._total.any()
    assert fresh._bounds == {"a": 0}


def test_sums_stay_exact_right_up_to_the_limit() -> None:
    entries = {"a": Entry((2,), np.dtype(np.float32))}
    sums = FloatSums(entries, 1)
    largest = np.float32(2.0**43 - 2.0**19)
    smallest = np.float32(2.0**-44)
    sums.fold([({"a": np.array([x, -x])}, 1) for x in (largest, smallest)])
    assert sums._high is not None
    assert sums._high.tolist() == [int(largest) * 2**8, -int(largest) * 2**8]
    assert (sums._total - (sums._high << 36)).tolist() == [1, -1]
    assert sums._bounds["a"] == int(largest) + 1 < LIMIT


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_sums_that_outgrow_one_word_get_a_second_and_lose_no_bit(
    loops: Kernels, small_blocks: Callable[[Kernels], None], threads: int, at_once: int
) -> None:
    small_blocks(loops)
    updates = [(update(seed), 10 ** (seed % 8)) for seed in range(16)]
    sums = FloatSums(ENTRIES, threads)
    grown = []
    for start in range(0, len(updates), at_once):
        sums.fold(updates[start : start + at_once])
        grown.append(sums._high is not None)
    assert grown[-1]
    wide = FloatSums(ENTRIES, 1)
    wide.words()
    wide._widen()
    wide.fold(updates)
    count = sum(weight for _, weight in updates)
    assert all((mean(wide, count)[name] == mean(sums, count)[name]).all() for name in ENTRIES)


@pytest.mark.parametrize("weights", [(1, 1), (1, 10**7), (10**7, 1), (10**5, 10**5), (10**7, 10**7)])
def test_merging_sums_of_one_word_and_of_two_loses_no_bit(weights: tuple[int, int]) -> None:
    halves = []
    for seed, weight in enumerate(weights):
        sums = FloatSums(ENTRIES, 1)
        sums.fold([(update(seed), weight), (update(seed + 5), 3)])
        halves.append(sums)
    before = bits(halves[1])
    halves[0].merge(halves[1])
    whole = FloatSums(ENTRIES, 1)
    whole.fold(
        [(update(seed), weight) for seed, weight in ((0, weights[0]), (5, 3), (1, weights[1]), (6, 3))]
    )
    count = sum(weights) + 6
    assert bits(halves[1]) == before
    assert all((mean(whole, count)[name] == mean(halves[0], count)[name]).all() for name in ENTRIES)


@pytest.mark.parametrize("bound", [ONE_WORD - 1, ONE_WORD])
def test_one_word_holds_sums_right_up_to_its_limit(bound: int) -> None:
    entries = {"a": Entry((2,), np.dtype(np.float64))}
    sums = FloatSums(entries, 1)
    sums.fold([({"a": np.array([bound, -bound], np.float64)}, 1)])
    assert (sums._high is None) == (bound < ONE_WORD)
    assert mean(sums, 1)["a"].tolist() == [bound, -bound]


def test_a_pass_that_goes_far_past_the_limit_loses_no_bit() -> None:
    entries = {"a": Entry((1,), np.dtype(np.float32))}
    sums = FloatSums(entries, 1)
    sums.fold([({"a": np.full(1, 3 * 2.0**-8, "f4")}, 1)])
    before = bits(sums)
    with pytest.raises(AggregationOverflow, match="update 1"):
        sums.fold([({"a": np.full(1, 2.0**42 + 2.0**19, "f4")}, 1)] * 40)
    assert bits(sums) == before


def test_merging_adds_the_bounds() -> None:
    entries = {"a": Entry((1,), np.dtype(np.float32))}
    left, right = FloatSums(entries, 1), FloatSums(entries, 1)
    for sums in (left, right):
        sums.fold([({"a": np.full(1, 2.0**41, "f4")}, 1)])
    left.merge(right)
    with pytest.raises(AggregationOverflow):
        left.fold([({"a": np.full(1, 2.0**42, "f4")}, 1)])


def test_merging_past_the_limit_is_refused_and_leaves_no_bit() -> None:
    entries = {"a": Entry((1,), np.dtype(np.float32)), "b": Entry((1,), np.dtype(np.float32))}
    halves = [FloatSums(entries, 1) for _ in range(2)]
    for half in halves:
        half.fold([({"a": np.ones(1, "f4"), "b": np.full(1, 2.0**42, "f4")}, 1)])
    before = [bits(half) for half in halves]
    with pytest.raises(AggregationOverflow, match="array `b`"):
        halves[0].merge(halves[1])
    assert [bits(half) for half in halves] == before


def test_an_unexpected_error_in_the_middle_leaves_no_bit(
    small_blocks: Callable[[Kernels], None], loops: Kernels
) -> None:
    calls = 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise MemoryError
        return loops.fold(*arguments)

    small_blocks(loops._replace(fold=failing))
    sums = FloatSums({"a": ENTRIES["a"]}, 2)
    sums.fold([(update(1), 7)])
    before = bits(sums)
    with pytest.raises(MemoryError):
        sums.fold([(update(2), 7), (update(3), 3)])
    assert calls >= 9
    assert bits(sums) == before


def test_every_allowed_number_of_updates_fits_the_low_bin() -> None:
    # Each float64 adds up to 2^35 low quanta twice; 2^17 of them must still be divided exactly.
    entries = {"a": Entry((1,), np.dtype(np.float64))}
    sums = FloatSums(entries, 1)
    value = 2.0**20 + 2.0**-9 - 2.0**-30
    sums.fold([({"a": np.full(1, value)}, 1)])
    for _ in range(17):
        sums.merge(sums)
    assert mean(sums, 2**17)["a"].tolist() == [value]


def test_sums_begin_at_zero_whatever_the_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, merged = FloatSums(ENTRIES, 2), FloatSums(ENTRIES, 2)
    expected.fold([(update(1), 3)])
    empty = np.empty
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: empty(shape, dtype) * 0 + 7)
    late, first, into, nothing = (FloatSums(ENTRIES, 2) for _ in range(4))
    assert not nothing.words().any()
    assert not nothing.second_words().any()
    with pytest.raises(InvalidUpdate):
        late.fold([(with_value("b", 14, np.nan), 3)])
    for sums in (late, first):
        sums.fold([(update(1), 3)])
        assert bits(sums) == bits(expected)
    into.merge(first)
    merged.merge(expected)
    assert bits(into) == bits(merged) == bits(expected)
