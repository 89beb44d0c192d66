"""Errors in the midst of a change: memory that runs out leaves no bit, and an interrupt no wrong number."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from _exact import FIVE, Same, mean_of

from lightning_fl_ext.aggregation import ExactMean, InvalidUpdate, blocks, kernels
from lightning_fl_ext.aggregation.blocks import Block, run
from lightning_fl_ext.aggregation.integer_sum import IntegerSum
from lightning_fl_ext.aggregation.kernels import Kernels
from lightning_fl_ext.errors import LightningFLError

MODEL = FIVE[0][0]
SmallBlocks = Callable[[Kernels], None]


class Failing:
    """A function that raises an error in its n-th call, before it works or after."""

    def __init__(self, function: Callable[..., Any], call: int, error: BaseException, after: bool = False):
        self.function, self.left, self.error, self.after = function, call, error, after

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.error
        result = self.function(*arguments, **named)
        if self.left == 0:
            raise self.error
        return result


def interrupted(loops: Kernels, small_blocks: SmallBlocks, threads: int) -> ExactMean:
    """A mean of two updates, hit by an interrupt that came while a compiled loop, say, was adding."""
    small_blocks(loops)
    mean = mean_of(FIVE[:2], threads)
    fold = Failing(loops.fold, 5, KeyboardInterrupt(), after=True)
    mean._floats._kernels = mean._floats._kernels._replace(fold=fold)
    with pytest.raises(KeyboardInterrupt):
        mean.add_many(FIVE[2:])
    return mean


@pytest.mark.parametrize("threads", [1, 3])
def test_a_mean_that_was_interrupted_gives_no_number_until_it_is_reset(
    loops: Kernels, small_blocks: SmallBlocks, same_bits: Same, threads: int
) -> None:
    mean = interrupted(loops, small_blocks, threads)
    whole = mean_of(FIVE[:2])
    uses: list[Callable[[], object]] = [
        mean.result,
        lambda: mean.wide_result(["weight"]),
        lambda: mean.add(*FIVE[2]),
        lambda: mean.merge(whole),
        lambda: whole.merge(mean),
    ]
    for use in uses:
        with pytest.raises(LightningFLError, match=r"an interrupt came.* Call\s`reset\(\)`"):
            use()
    assert same_bits(whole.result(), mean_of(FIVE[:2]).result())
    mean.reset().add_many(FIVE)
    assert same_bits(mean.result(), mean_of(FIVE).result())


def test_memory_at_which_an_interrupted_thread_may_still_be_is_not_kept(
    loops: Kernels, small_blocks: SmallBlocks
) -> None:
    mean = interrupted(loops, small_blocks, 1)
    before = mean._floats._room
    assert mean.reset()._floats._room is not before


def test_an_interrupt_while_sums_merge_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, other = mean_of(FIVE[:2]), mean_of(FIVE[2:])
    with monkeypatch.context() as patched:
        patched.setattr(np, "add", Failing(np.add, 1, KeyboardInterrupt(), after=True))
        with pytest.raises(KeyboardInterrupt):
            mean.merge(other)
    with pytest.raises(LightningFLError, match="an interrupt came"):
        mean.result()


@pytest.mark.parametrize("call", range(1, 12))
@pytest.mark.parametrize("largest", [1, 10**6])
def test_memory_that_runs_out_between_two_updates_of_a_pass_leaves_no_bit(
    monkeypatch: pytest.MonkeyPatch, same_bits: Same, call: int, largest: int
) -> None:
    like = {"w": np.zeros(3, np.float32), "d": np.zeros(2)}
    updates = [
        ({"w": np.full(3, i + 0.7, "f4"), "d": np.full(2, i + 0.3)}, i * largest + 1) for i in range(9)
    ]
    monkeypatch.setattr(kernels, "_folded", 0)  # the loops of numpy
    mean, expected = ExactMean(like), ExactMean(like)
    for each in (mean, expected):
        each.add_many(updates[:2])
    with monkeypatch.context() as patched:
        patched.setattr(kernels, "bins", Failing(kernels.bins, call, MemoryError()))
        patched.setattr(kernels, "NARROW", 0.0)
        with pytest.raises(MemoryError):
            mean.add_many(updates[2:])
    assert same_bits(mean.result(), expected.result())
    for each in (mean, expected):
        each.add_many(updates[2:])
    assert same_bits(mean.result(), expected.result())


@pytest.mark.parametrize("call", [1, 2, 3])
def test_terms_are_taken_out_once_though_memory_runs_out_meanwhile(same_bits: Same, call: int) -> None:
    like = {"w": np.zeros(3, np.float32)}
    updates = [({"w": np.full(3, 0.7, "f4")}, weight) for weight in (2, 3, 5, 7, 11, 2**20)]
    mean = ExactMean(like)
    mean.add_many(updates[:1])
    before = mean.result()
    loops = mean._floats._kernels
    mean._floats._kernels = loops._replace(unfold=Failing(loops.unfold, call, MemoryError()))
    with pytest.raises(MemoryError):  # on the way to a second word
        mean.add_many(updates)
    assert same_bits(mean.result(), before)


def test_terms_that_could_not_be_taken_out_give_no_number() -> None:
    mean = ExactMean({"w": np.zeros(1)})
    mean.add({"w": np.ones(1)}, 1)

    def unfold(*arguments: Any) -> Any:
        raise MemoryError

    mean._floats._kernels = mean._floats._kernels._replace(unfold=unfold)
    with pytest.raises(MemoryError):
        mean.add({"w": np.array([np.nan])}, 1)
    with pytest.raises(LightningFLError, match="not known"):
        mean.result()


def test_a_merge_without_memory_for_integers_changes_no_float(
    monkeypatch: pytest.MonkeyPatch, same_bits: Same
) -> None:
    mean, other = mean_of(FIVE[:2]), mean_of(FIVE[2:])
    with monkeypatch.context() as patched:
        failing = Failing(IntegerSum.merge, 2, MemoryError())
        patched.setattr(IntegerSum, "merge", lambda *both: failing(*both))
        with pytest.raises(MemoryError):
            mean.merge(other)
    assert same_bits(mean.result(), mean_of(FIVE[:2]).result())


def test_a_reset_without_memory_for_the_next_model_forgets_nothing(
    monkeypatch: pytest.MonkeyPatch, same_bits: Same
) -> None:
    mean, other = mean_of(FIVE[:2]), MODEL | {"weight": np.zeros(5, np.float32)}
    with monkeypatch.context() as patched:
        patched.setattr(IntegerSum, "zero", Failing(IntegerSum.zero, 2, MemoryError()))
        with pytest.raises(MemoryError):
            mean.reset(other)
    assert same_bits(mean.result(), mean_of(FIVE[:2]).result())
    mean.merge(mean_of(FIVE[2:]))
    assert same_bits(mean.result(), mean_of(FIVE).result())


@pytest.mark.parametrize("failing", ["caller", "other"])
def test_no_thread_begins_another_block_after_an_error(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    over, done = threading.Event(), []

    class Watched(deque[Block]):
        def clear(self) -> None:
            super().clear()
            over.set()

    def work(taken: Iterable[Block]) -> None:
        here = "caller" if threading.current_thread() is threading.main_thread() else "other"
        for block in taken:
            done.append(block)
            if here == failing:
                raise InvalidUpdate(here)
            assert over.wait(30)

    monkeypatch.setattr(blocks, "deque", Watched)
    with pytest.raises(InvalidUpdate, match=failing):
        run(work, list(blocks.cut({"w": 100}, 1)), 2)
    assert len(done) <= 2


SIGNALLING = {
    "float16": (np.uint16, 0x7D00),
    "bfloat16": (np.uint16, 0x7FA0),
    "float32": (np.uint32, 0x7FA00000),
    "float64": (np.uint64, 0x7FF0000000000001),
}


@pytest.mark.parametrize("dtype", SIGNALLING)
@pytest.mark.parametrize("size", [1, 100])
def test_a_signalling_nan_is_refused_without_a_warning(
    loops: Kernels, small_blocks: SmallBlocks, dtype: str, size: int
) -> None:
    small_blocks(loops)
    unsigned, bits = SIGNALLING[dtype]
    like = {"w": np.zeros(size, dtype)}
    bad = like["w"].copy()
    bad.view(unsigned)[size // 2] = bits
    mean = ExactMean(like)
    with pytest.raises(InvalidUpdate, match="update 1, array `w`"):
        mean.add_many([(like, 1), ({"w": bad}, 1)])
