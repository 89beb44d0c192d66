"""What the exact mean refuses, and that nothing of a refused call counts."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from _exact import FIVE, Same, Update, mean_of, model
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.aggregation import AggregationOverflow, ExactMean, InvalidUpdate, exact_mean
from lightning_fl_ext.errors import LightningFLError


@pytest.mark.parametrize(
    ("changed", "weight", "error"),
    [
        ({"weight": np.zeros((30, 1), np.float32)}, 1, InvalidUpdate),
        ({"weight": np.full((30, 3), np.nan, np.float32)}, 1, InvalidUpdate),
        ({"wave": np.full((30, 3), complex(0, np.inf), np.complex64)}, 1, InvalidUpdate),
        ({"brain": np.full((30, 3), np.inf, ml_dtypes.bfloat16)}, 1, InvalidUpdate),
        ({"half": np.full((30, 3), np.nan, np.float16)}, 1, InvalidUpdate),
        ({"half": np.full((30, 3), -np.inf, np.float16)}, 2**26, InvalidUpdate),
        ({"brain": np.full((30, 3), 1e38, ml_dtypes.bfloat16)}, 1, AggregationOverflow),
        ({"double": np.full(90, 1e308)}, 2**26, AggregationOverflow),
        ({"double": np.full(90, 1e300)}, 1, AggregationOverflow),
        ({"weight": np.full((30, 3), 2.0**23, np.float32)}, 2**20, AggregationOverflow),
        ({}, 0, InvalidUpdate),
        ({}, 2**26 + 1, AggregationOverflow),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_refused_update_changes_no_bit_of_the_mean(
    same_bits: Same, changed: dict[str, Any], weight: int, error: type[Exception], alone: bool
) -> None:
    mean = mean_of(FIVE[:3])
    bad = ({**model(9), **changed}, weight)
    with pytest.raises(error):
        mean.add_many([bad] if alone else [FIVE[3], bad, FIVE[4]])
    assert (mean.num_updates, mean.total_weight) == (3, 108)
    assert same_bits(mean.result(), mean_of(FIVE[:3]).result())
    mean.add_many(FIVE[3:])
    assert same_bits(mean.result(), mean_of(FIVE).result())
    with pytest.raises(error):
        exact_mean(FIVE[0][0], [bad] if alone else [FIVE[3], bad, FIVE[4]])


def test_more_updates_than_the_bins_hold_overflow() -> None:
    mean = mean_of([({"w": np.ones(1, np.float32)}, 1)])
    for _ in range(17):
        mean.merge(mean)
    assert mean.num_updates == 2**17
    with pytest.raises(AggregationOverflow, match="at most 131072 updates, got 131073"):
        mean.add({"w": np.ones(1, np.float32)}, 1)
    with pytest.raises(AggregationOverflow, match="got 262144"):
        mean.merge(mean)
    assert mean.result()["w"] == 1


@given(st.permutations([(2.0**41, 1), (2.0**40, 3), (-(2.0**42), 1), (5.0, 2**20)]), st.integers(1, 4))
def test_whether_updates_overflow_does_not_depend_on_their_order(order: Any, at_once: int) -> None:
    updates: list[Update] = [({"w": np.array([value], np.float32)}, weight) for value, weight in order]
    with pytest.raises(AggregationOverflow):
        mean_of(updates, at_once=at_once)
    with pytest.raises(AggregationOverflow):
        exact_mean(updates[0][0], updates)


def test_another_models_mean_does_not_merge() -> None:
    mean = mean_of(FIVE[:1])
    other = mean_of([({**model(0), "half": np.zeros((30, 3), np.float32)}, 1)])
    with pytest.raises(InvalidUpdate, match=r"differs in 1 arrays \['half'\]"):
        mean.merge(other)
    assert mean.num_updates == 1


def test_nothing_has_no_mean() -> None:
    with pytest.raises(LightningFLError, match="nothing to average"):
        ExactMean({"w": np.zeros(1)}).result()
    mean = ExactMean({"w": np.zeros(1)})
    mean.add_many([])
    with pytest.raises(LightningFLError, match="nothing to average"):
        mean.result()
    with pytest.raises(LightningFLError, match="nothing to average"):
        exact_mean({"w": np.zeros(1)}, [])


def test_means_are_written_to_arrays_that_the_caller_made(same_bits: Same) -> None:
    model = {
        "half": np.zeros(3, np.float16),
        "complex": np.zeros((2, 2), np.complex64),
        "steps": np.array(0),
        "open": np.zeros(2, np.bool_),
        "w": np.zeros((2, 3), np.float32),
    }
    generator = np.random.default_rng(0)
    updates = [
        ({name: (9 * generator.standard_normal(a.shape)).astype(a.dtype) for name, a in model.items()}, n)
        for n in (3, 5, 7)
    ]
    expected = exact_mean(model, updates)
    out = {name: np.ones_like(array) for name, array in reversed(model.items())}
    for average in (partial(exact_mean, model, updates), mean_of(updates).result):
        written = average(out=out)
        assert list(written) == list(model)
        assert all(written[name] is out[name] for name in model)
        assert same_bits(written, expected)
        for array in out.values():
            array[...] = 0


@pytest.mark.parametrize(
    "out",
    [
        {},
        {"w": np.zeros((3, 2))},
        {"w": np.zeros((2, 3), np.float32)},
        {"w": np.zeros((3, 2)).T},
        {"w": np.broadcast_to(0.0, (2, 3))},
        {"w": np.frombuffer(bytes(48)).reshape(2, 3)},
        {"w": [[0.0] * 3] * 2},
    ],
    ids=["missing", "shape", "dtype", "order", "broadcast", "read-only", "list"],
)
def test_what_a_mean_cannot_be_written_to_is_refused(out: Any) -> None:
    update = ({"w": np.ones((2, 3))}, 2)
    with pytest.raises(ValueError, match=r"`out`: expected writable C-contiguous .* for \['w'\]"):
        exact_mean(update[0], [update], out=out)
    with pytest.raises(ValueError, match="`out`"):
        mean_of([update]).result(out)


def test_threads_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`threads`"):
        ExactMean({}, threads=0)
