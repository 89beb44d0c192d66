"""Packed arrays are views of the very bytes a message carries, and nothing else is taken for such bytes."""

import io
import sys

import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array

from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.layout import LARGE, Blank, copy_in_layout, message_bytes

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.float16),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(10.0)[::2],
    "big_endian": np.arange(3, dtype=">f4"),
    "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
    "empty_bfloat16": np.zeros((2, 0), ml_dtypes.bfloat16),
}


def as_flower_writes(array):
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape))
    return stream.getvalue()


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_the_copy_holds_the_same_and_is_put_into_a_message_as_it_lies(array):
    view = copy_in_layout(array)
    np.testing.assert_array_equal(view, array)
    assert (view.shape, view.dtype.name) == (array.shape, array.dtype.name)
    assert not view.flags.writeable
    assert view.flags.aligned
    assert message_bytes(view) is view.base
    assert message_bytes(array) == message_bytes(view), "with and without a copy: the same bytes"


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_a_blank_is_put_into_a_message_as_it_was_written(array):
    blank = Blank(array)
    writable = blank.writable()
    assert (writable.shape, writable.dtype.name) == (array.shape, array.dtype.name)
    assert writable.flags.c_contiguous
    assert writable.flags.aligned
    assert not writable.any()
    writable[...] = array
    where = writable.ctypes.data
    del writable
    written = blank.written()
    assert message_bytes(written) is written.base
    assert message_bytes(written) == message_bytes(array)
    assert written.ctypes.data == where or not array.size, "without a copy"


def test_what_is_written_later_does_not_change_what_was_given_out():
    blank = Blank(np.zeros(2))
    kept = blank.writable()
    kept[...] = 1
    written = blank.written()
    kept[...] = 2
    assert written.tolist() == [1, 1]
    del kept
    again = blank.written()
    blank.writable()[...] = 3
    assert again.tolist() == [2, 2]


@pytest.mark.parametrize("name", [name for name in ARRAYS if "bfloat16" not in name])
def test_the_bytes_are_those_flower_writes(name):
    assert message_bytes(ARRAYS[name]) == as_flower_writes(ARRAYS[name])
    np.testing.assert_array_equal(
        Array(*_fields(ARRAYS[name]), message_bytes(ARRAYS[name])).numpy(), ARRAYS[name]
    )


def _fields(array):
    return array.dtype.name, array.shape, "numpy.ndarray"


def test_what_came_in_a_message_goes_out_without_a_copy():
    record = to_record({"w": ARRAYS["float32"]})
    assert to_record(from_record(record))["w"].data is record["w"].data


OTHER_VIEWS = {
    "a part": lambda view: view[:1],
    "another order": lambda view: view[::-1],
    "transposed": lambda view: view.T,
    "reshaped": lambda view: view.reshape(3, 2),
    "other bits": lambda view: view.view(np.int32),
    "other byte order": lambda view: view.view(">f4"),
    "broadcast": lambda view: np.broadcast_to(view[:1], (2, 3)),
}


@pytest.mark.parametrize("other", OTHER_VIEWS.values(), ids=OTHER_VIEWS)
def test_other_views_of_those_bytes_are_written_as_what_they_are(other):
    array = other(copy_in_layout(ARRAYS["float32"]))
    assert message_bytes(array) == as_flower_writes(array)


def test_bare_bytes_of_another_array_are_not_taken_for_its_own():
    owner = copy_in_layout(np.arange(4).astype(ml_dtypes.bfloat16))
    half = owner[:2]
    assert message_bytes(half) == half.tobytes()


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda values: values,
        lambda values: values.reshape(2, -1).T,
        lambda values: values.astype(">f4"),
        lambda values: values[::3],
        lambda values: values.astype(ml_dtypes.bfloat16),
    ],
    ids=["plain", "transposed", "big_endian", "strided", "bfloat16"],
)
def test_a_large_array_lies_in_large_pages_with_the_same_bytes(make, bare):
    array = make(np.arange(4 * LARGE // 4, dtype=np.float32))
    assert array.nbytes >= LARGE
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    elements = little.tobytes()
    written = message_bytes(array, bare)
    if bare or array.dtype == ml_dtypes.bfloat16:
        assert written == elements
    else:
        assert written == as_flower_writes(array)
    view = copy_in_layout(array)
    assert view.tobytes() == elements
    assert message_bytes(view) is view.base


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is asked")
def test_a_kernel_that_has_no_large_pages_changes_nothing(monkeypatch):
    class Without:
        def madvise(self, *_):
            return -1

    array = np.arange(LARGE, dtype=np.float32)
    expected = message_bytes(array)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Without())
    assert message_bytes(array) == expected
