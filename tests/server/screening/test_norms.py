"""Whether arrays are finite, and the norm of an update."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from lightning_fl_ext.server.screening.norms import first_not_finite, is_finite, update_norm
from lightning_fl_ext.wire import from_record


def test_a_finite_sum_is_not_needed_to_be_finite():
    assert is_finite(np.full(9, 3e38, dtype=np.float32))
    assert not is_finite(np.array([1.0, np.inf, -np.inf]))
    assert is_finite(np.array([], dtype=np.float32))
    assert not is_finite(np.array(complex(0, np.nan)))
    brain = from_record(ArrayRecord({"b": _brain([1.0, float("inf")])}))["b"]
    assert not is_finite(brain)


def _brain(values):
    from lightning_fl_ext.wire import to_numpy, to_record

    packed = to_record({"b": to_numpy(torch.tensor(values, dtype=torch.bfloat16))})["b"]
    assert isinstance(packed, Array)
    return packed


@pytest.mark.parametrize(
    ("dtype", "unsigned", "bits"),
    [
        ("float16", np.uint16, 0x7D00),
        ("bfloat16", np.uint16, 0x7FA0),
        ("float32", np.uint32, 0x7FA00000),
        ("float64", np.uint64, 0x7FF0000000000001),
        ("complex64", np.uint32, 0x7FA00000),
    ],
)
def test_a_signalling_nan_is_found_without_a_warning(dtype, unsigned, bits):
    array = np.zeros(5, dtype)
    array.view(unsigned)[3] = bits
    assert not is_finite(array)
    assert first_not_finite(array).startswith("nan")


def test_the_norm_of_an_update_is_numpy_s():
    rng = np.random.default_rng(0)
    old = {"a": rng.normal(size=70_000).astype(np.float32), "n": np.arange(3)}
    new = {"a": rng.normal(size=70_000).astype(np.float32), "n": np.arange(3) + 5}
    expected = np.linalg.norm(new["a"].astype(float) - old["a"].astype(float))
    assert update_norm(new, old) == pytest.approx(expected, rel=1e-12)
