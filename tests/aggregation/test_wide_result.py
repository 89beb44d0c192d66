"""The mean in float64, for what lies between it and the model: exact, and beside it the mean as it is."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lightning_fl_ext import ExactMean, LightningFLError


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_wide_mean_is_rounded_once_to_float64(dtype, binned_mean):
    rng = np.random.default_rng(0)
    like = {"w": np.zeros(20, dtype), "steps": np.array(0)}
    mean = ExactMean(like)
    updates = [(rng.normal(size=20).astype(dtype), int(rng.integers(1, 999))) for _ in range(5)]
    for i, (values, weight) in enumerate(updates):
        mean.add({"w": values, "steps": np.array(i)}, weight)
    got = mean.wide_result({"w"})
    assert got["w"].dtype == np.float64
    for i, value in enumerate(got["w"]):
        terms = [(np.float64(values[i]), weight) for values, weight in updates]
        assert Fraction(float(value)) == binned_mean(terms, np.float64)
    assert got["steps"] == mean.result()["steps"]


def test_only_the_arrays_named_are_wide_and_complex_ones_get_complex128():
    like = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32), "z": np.zeros(2, np.complex64)}
    mean = ExactMean(like)
    rng = np.random.default_rng(1)
    for _ in range(3):
        mean.add({name: rng.normal(size=array.shape).astype(array.dtype) for name, array in like.items()}, 3)
    wide, narrow = mean.wide_result({"a", "z"}), mean.result()
    assert [array.dtype for array in wide.values()] == [np.float64, np.float32, np.complex128]
    assert wide["b"].tobytes() == narrow["b"].tobytes()
    assert wide["z"].astype(np.complex64).tobytes() == narrow["z"].tobytes()


def test_nothing_has_no_wide_mean():
    with pytest.raises(LightningFLError, match="nothing to average"):
        ExactMean({"w": np.zeros(1)}).wide_result({"w"})
