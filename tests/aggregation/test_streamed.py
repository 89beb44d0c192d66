"""Updates that wait for a pass: the bits of `ExactMean`, and no more in memory than was promised."""

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation import ExactMean, InvalidUpdate, streamed
from lightning_fl_ext.aggregation.streamed import StreamedMean

SIZES = {"a": 40, "b": 7, "c": 30, "d": 33, "e": 1, "steps": 3}


@pytest.fixture(params=[1, streamed.LARGE], ids=["cut", "whole"])
def cut(request, monkeypatch):
    monkeypatch.setattr(streamed, "LARGE", request.param)


def model():
    return {name: np.zeros(size, np.int64 if name == "steps" else np.float32) for name, size in SIZES.items()}


def update(seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 9, size) if name == "steps" else rng.normal(size=size).astype(np.float32)
        for name, size in SIZES.items()
    }, int(rng.integers(1, 9))


def bits(arrays):
    return [(name, array.dtype, array.tobytes()) for name, array in arrays.items()]


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("clients", range(1, 14))
def test_the_mean_of_any_number_of_updates_has_the_bits_of_the_exact_mean(clients):
    updates = [update(seed) for seed in range(clients)]
    reference, mean = ExactMean(model()), StreamedMean(model())
    reference.add_many(updates)
    for arrays, weight in updates:
        mean.add(arrays, weight)
    assert mean.num_updates == clients
    assert bits(mean.wide_result(["a", "e"])) == bits(reference.wide_result(["a", "e"]))
    assert bits(mean.result()) == bits(reference.result())


@pytest.mark.usefixtures("cut")
def test_more_can_be_added_after_a_result():
    reference, mean = ExactMean(model()), StreamedMean(model())
    for seed in range(11):
        reference.add(*update(seed))
        mean.add(*update(seed))
        assert bits(mean.result()) == bits(reference.result())


@pytest.mark.usefixtures("cut")
def test_the_result_is_written_where_it_is_wanted():
    mean, out = StreamedMean(model()), model()
    for seed in range(5):
        mean.add(*update(seed))
    result = mean.result(out)
    assert all(result[name] is out[name] for name in SIZES)
    assert bits(out) == bits(mean.result())


class Watched(np.ndarray):
    """An array that can be watched."""


@given(sizes=st.lists(st.integers(1, 1000), min_size=8, max_size=12))
def test_two_and_a_half_updates_wait_where_arrays_are_alike_and_three_and_a_quarter_at_first(sizes):
    sizes = [*sizes, *sizes, *sizes, *sizes]
    like = {str(i): np.zeros(size, np.float32) for i, size in enumerate(sizes)}
    whole = sum(array.nbytes for array in like.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "LARGE", 1)
        mean, watched, waiting = StreamedMean(like), [], []
        for _ in range(16):
            arrays = {name: np.zeros(zeros.size, np.float32).view(Watched) for name, zeros in like.items()}
            watched += [(weakref.ref(array), array.nbytes) for array in arrays.values()]
            waiting.append(sum(size for reference, size in watched if reference() is not None) / whole)
            mean.add(arrays, 1)
            del arrays
    assert max(waiting[:7]) <= 3.4
    assert max(waiting[7:]) <= 2.6
    assert waiting[8::4] == pytest.approx(waiting[8:9] * 2)


def test_a_model_that_is_nearly_one_array_keeps_four_updates_at_most(monkeypatch):
    monkeypatch.setattr(streamed, "LARGE", 1)
    like = {"embedding": np.zeros(1000, np.float32), "bias": np.zeros(1, np.float32)}
    mean, watched = StreamedMean(like), []
    for _ in range(12):
        arrays = {name: np.zeros(zeros.size, np.float32).view(Watched) for name, zeros in like.items()}
        watched.append(weakref.ref(arrays["embedding"]))
        assert sum(reference() is not None for reference in watched) <= 4
        mean.add(arrays, 1)
        del arrays


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays.pop("e"),
        lambda arrays: arrays.update(more=np.zeros(1)),
        lambda arrays: arrays.update(b=np.zeros(8, np.float32)),
        lambda arrays: arrays.update(d=np.full(33, np.nan, np.float32)),
    ],
    ids=["missing", "unknown", "shape", "nan"],
)
def test_an_update_that_does_not_fit_is_refused_before_there_is_a_result(spoil):
    mean = StreamedMean(model())
    arrays, weight = update(0)
    spoil(arrays)
    mean.add(*update(1))

    def finish():
        mean.add(arrays, weight)
        mean.result()

    with pytest.raises(InvalidUpdate):
        finish()
