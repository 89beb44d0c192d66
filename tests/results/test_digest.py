"""The digest against its definition, written out with hashlib here."""

import hashlib
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.results import digest

some_array = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<c8", "<U3"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


def reference(named):
    parts = []
    for name, array in named.items():
        fields = [name, array.dtype.name, ",".join(str(n) for n in array.shape)]
        parts += [field.encode() for field in fields] + [array.tobytes(order="C")]
    return hashlib.sha256(b"".join(struct.pack("<Q", len(part)) + part for part in parts)).hexdigest()


@given(st.dictionaries(st.text(max_size=4), some_array, max_size=4))
def test_is_sha256_over_length_prefixed_name_dtype_shape_and_bytes(named):
    assert digest(named) == reference(named)


def test_bfloat16_and_float8_are_hashed_under_their_names():
    for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        array = np.array([1.0, -2.0], dtype)
        assert digest({"w": array}) == reference({"w": array})


def test_a_list_is_named_by_position():
    arrays = [np.arange(3), np.ones(2)]
    assert digest(arrays) == digest({"0": arrays[0], "1": arrays[1]})


def test_does_not_depend_on_layout_or_byte_order():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    padded = np.zeros((2, 3, 8), np.float32)
    padded[:, :, ::2] = array
    same = [np.asfortranarray(array), padded[:, :, ::2], array.astype(">f4"), array[::-1][::-1]]
    assert {digest({"w": a}) for a in same} == {digest({"w": array})}


@pytest.mark.parametrize(
    "other",
    [
        {"v": np.array([[1.0, 2.0]])},
        {"w": np.array([1.0, 2.0])},
        {"w": np.array([[1.0], [2.0]])},
        {"w": np.array([[1.0, 2.0]], np.float32)},
        {"w": np.array([[1.0, 2.0]]).view(np.int64)},
        {"w": np.array([[1.0, np.nextafter(2.0, 3.0)]])},
        {"w": np.array([[1.0, 2.0]]), "empty": np.empty(0)},
        {},
    ],
)
def test_tells_apart_names_shapes_dtypes_and_single_bits(other):
    assert digest(other) != digest({"w": np.array([[1.0, 2.0]])})


def test_tells_apart_signed_zeros_nan_payloads_and_the_order_of_entries():
    assert digest([np.array(0.0)]) != digest([np.array(-0.0)])
    assert digest([np.array([0x7FF8000000000000]).view(float)]) != digest(
        [np.array([0x7FF8000000000001]).view(float)]
    )
    a, b = np.ones(1), np.zeros(1)
    assert digest({"a": a, "b": b}) != digest({"b": b, "a": a})


def test_bytes_cannot_move_from_one_entry_to_the_next():
    assert digest({"a": np.zeros(2, np.uint8), "b": np.zeros(1, np.uint8)}) != digest(
        {"a": np.zeros(1, np.uint8), "b": np.zeros(2, np.uint8)}
    )


@pytest.mark.parametrize(
    "array", [np.array([{}]), np.array([None, 1.0]), np.zeros(1, [("a", np.int32), ("b", np.int32)])]
)
def test_objects_and_records_are_refused_by_name(array):
    with pytest.raises(TypeError, match="array `w` of dtype"):
        digest({"w": array})
