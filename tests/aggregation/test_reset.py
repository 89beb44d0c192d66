"""`ExactMean.reset`: the next mean has the bits of a new one, in the memory of the last."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _exact import FIVE, Same, mean_of
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation import AggregationOverflow, ExactMean, InvalidUpdate, kernels, words
from lightning_fl_ext.aggregation.kernels import Kernels

MODEL = FIVE[0][0]
HUGE = np.float32(2.0**20)


def scaled(factor: Any) -> tuple[dict[str, Any], int]:
    arrays, weight = FIVE[0]
    return arrays | {"weight": arrays["weight"] * factor}, weight


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mean_after_a_reset_has_the_bits_of_a_new_one(
    same_bits: Same, loops: Kernels, small_blocks: Callable[[Kernels], None], threads: int
) -> None:
    small_blocks(loops)
    mean = ExactMean(MODEL, threads=threads)
    mean.add_many(FIVE)
    for number in (3, 1, 5):
        assert mean.reset() is mean
        assert (mean.num_updates, mean.total_weight) == (0, 0)
        mean.add_many(FIVE[:number])
        assert same_bits(mean.result(), mean_of(FIVE[:number]).result())


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=2, max_size=4))
def test_whatever_rounds_came_before_leave_no_bit(rounds: list[list[int]]) -> None:
    kept = ExactMean(MODEL)
    for chosen in rounds:
        kept.reset(MODEL)
        for number in chosen:
            kept.add(*FIVE[number])
        expected = mean_of([FIVE[number] for number in chosen]).result()
        assert {name: array.tobytes() for name, array in kept.result().items()} == {
            name: array.tobytes() for name, array in expected.items()
        }


def test_sums_of_two_words_are_of_one_again(same_bits: Same) -> None:
    mean = ExactMean(MODEL)
    mean.add(*scaled(HUGE))
    assert mean._floats._high is not None
    mean.reset().add_many(FIVE[:2])
    assert mean._floats._high is None
    assert same_bits(mean.result(), mean_of(FIVE[:2]).result())


def test_bounds_begin_anew(same_bits: Same) -> None:
    like = {"w": np.zeros(1, np.float32)}
    mean = ExactMean(like)
    for _ in range(3):  # two of these at a time would overflow
        mean.reset().add({"w": np.array([2.0**42], np.float32)}, weight=1)
    with pytest.raises(AggregationOverflow):
        mean.add({"w": np.array([2.0**42], np.float32)}, weight=1)


def test_a_mean_that_refused_an_update_is_reset_like_any_other(same_bits: Same) -> None:
    mean = ExactMean(MODEL)
    with pytest.raises(InvalidUpdate):
        mean.add(*scaled(np.nan))
    mean.reset().add_many(FIVE)
    assert same_bits(mean.result(), mean_of(FIVE).result())


def test_memory_is_kept_for_a_model_of_the_same_size_and_new_for_another(same_bits: Same) -> None:
    mean = ExactMean(MODEL)
    before = mean._floats._room
    assert mean.reset(MODEL)._floats._room is before
    other = {"w": np.zeros(3, np.float32), "steps": np.array(0)}
    update = {"w": np.array([1, 2, 3], np.float32), "steps": np.array(7)}
    mean.reset(other).add(update, weight=2)
    assert mean._floats._room is not before
    assert same_bits(mean.result(), update)


def test_a_model_without_a_mean_is_refused_and_nothing_forgotten(same_bits: Same) -> None:
    mean = mean_of(FIVE)
    with pytest.raises(TypeError, match="`like`, array `name`"):
        mean.reset({"name": np.array(["a"])})
    assert same_bits(mean.result(), mean_of(FIVE).result())


def test_numbers_that_were_set_from_words_are_not_written_over() -> None:
    like = {"w": np.zeros(2, np.float32)}
    total = np.concatenate(words.to_words(mean_of([({"w": np.ones(2, np.float32)}, 1)]), wide=False))
    total.flags.writeable = False
    mean = words.from_words(like, total, wide=False, total_weight=1, num_updates=1)
    mean.reset().add({"w": np.array([2, 3], np.float32)}, weight=1)
    assert mean.result()["w"].tolist() == [2, 3]
    assert total.view(np.int64).tolist() == [2**44] * 2


def test_a_mean_s_copy_has_memory_of_its_own(same_bits: Same) -> None:
    mean = mean_of(FIVE)
    again = copy.deepcopy(mean.reset)
    again().add(*FIVE[0])
    assert same_bits(mean.result(), mean_of(FIVE).result())


def test_the_loops_are_chosen_again(fused: Kernels, monkeypatch: pytest.MonkeyPatch, same_bits: Same) -> None:
    monkeypatch.setattr(kernels, "_folded", 0)
    mean = ExactMean(MODEL)
    assert mean._floats._kernels is kernels._BLOCKED
    monkeypatch.setattr(kernels, "_folded", kernels.COMPILE_AFTER)
    mean.reset().add_many(FIVE)
    assert mean._floats._kernels is fused
    assert same_bits(mean.result(), mean_of(FIVE).result())
