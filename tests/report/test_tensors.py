"""The first difference is found in every dtype, and described by its bits."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.report.tensors import first_difference

DTYPES = [np.float16, np.float32, np.float64, np.int64, np.uint8, np.bool_, np.complex64, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_the_first_element_that_differs_is_found_in_every_dtype(dtype):
    left = {"a": np.ones(3, dtype), "w": np.zeros((4, 5), dtype), "z": np.ones(2, dtype)}
    right = {name: array.copy() for name, array in left.items()}
    right["w"][2, 3] = right["w"][3, 1] = right["z"][0] = 1
    left["z"][0] = 0
    found = first_difference(left, right)
    assert (found.name, found.others) == ("w", ("z",))
    assert (found.index, found.differing, found.elements) == ((2, 3), 2, 20)
    assert found.values == (str(np.zeros((), dtype)), str(np.ones((), dtype)))


@given(st.integers(0, 19))
def test_the_place_is_right_whatever_the_layout(place):
    left = np.arange(20.0).reshape(4, 5)
    right = np.asfortranarray(left.copy())
    right.flat[place] += 0.5
    found = first_difference({"w": left}, {"w": right})
    assert found.index == tuple(np.unravel_index(place, (4, 5)))
    assert found.largest == 0.5


def test_equal_bits_are_equal_whatever_the_layout():
    array = np.arange(6.0).reshape(2, 3)
    array[0, 0] = np.nan
    assert first_difference({"w": array}, {"w": np.asfortranarray(array)}) is None


def test_bits_count_not_values():
    found = first_difference({"w": np.array([0.0])}, {"w": np.array([-0.0])})
    assert (found.values, found.largest) == (("0.0", "-0.0"), 0.0)


def test_a_scalar_has_an_empty_index():
    found = first_difference({"n": np.array(1)}, {"n": np.array(2)})
    assert (found.index, found.values) == ((), ("1", "2"))


@pytest.mark.parametrize(
    ("other", "shapes"),
    [
        ({"w": np.ones(3)}, ("float64[2]", "float64[3]")),
        ({"w": np.ones(2, np.float32)}, ("float64[2]", "float32[2]")),
        ({}, ("float64[2]", None)),
    ],
)
def test_another_shape_or_dtype_is_named(other, shapes):
    found = first_difference({"w": np.ones(2)}, other)
    assert (found.shapes, found.differing) == (shapes, 0)


def test_a_tensor_only_the_other_side_has_is_named():
    found = first_difference({"w": np.ones(2)}, {"w": np.ones(2), "new": np.ones(1)})
    assert (found.name, found.shapes) == ("new", (None, "float64[1]"))
