"""Arrays to Flower's records and back; whatever a record holds, decoding it is safe."""

import io
import struct

import ml_dtypes
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import digest
from lightning_fl_ext.wire import PayloadError, from_record, to_record
from lightning_fl_ext.wire.records import written_record

NUMPY = ["?", "<f2", "<f4", "<f8", "<c8", "<c16"] + [f"<{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)]
EXTENDED = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e8m0fnu]
SHAPES = [(), (0,), (2, 0), (3,), (2, 3)]


def random_bits(dtype, shape):
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 256, size, dtype=np.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NUMPY + EXTENDED)
def test_every_dtype_and_shape_comes_back_to_the_bit(dtype, shape):
    array = random_bits(dtype, shape)
    (back,) = from_record(to_record({"w": array})).values()
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NUMPY)
def test_plain_flower_reads_every_dtype_of_numpy(dtype, shape):
    array = random_bits(dtype, shape)
    read = to_record({"w": array})["w"].numpy()
    assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NUMPY)
def test_what_plain_flower_writes_is_read(dtype, shape):
    array = random_bits(dtype, shape)
    for written in (array, np.array(array, order="F"), array.astype(array.dtype.newbyteorder(">"))):
        assert digest(from_record(ArrayRecord({"w": Array(written)}))) == digest({"w": array})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NUMPY + EXTENDED)
def test_a_bare_array_is_its_little_endian_elements_alone_and_comes_back(dtype, shape):
    array = random_bits(dtype, shape)
    record = to_record({"code": array.astype(array.dtype.newbyteorder(">")), "w": array}, bare={"code"})
    assert record["code"].data == array.tobytes()
    assert (record["w"].stype == "numpy.ndarray") == (dtype in NUMPY)
    back = from_record(record)["code"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_names_and_their_order_are_kept():
    names = ["b", "a", "layer.0.weight", "ü"]
    assert list(from_record(to_record({name: np.ones(1) for name in names}))) == names


def test_any_layout_and_byte_order_is_sent():
    array = np.arange(6.0).reshape(2, 3)
    for same in (np.asfortranarray(array), array.astype(">f8"), array[::-1][::-1]):
        assert digest(from_record(to_record({"w": same}))) == digest({"w": array})


def test_decoded_arrays_are_read_only_views_of_the_record():
    record = to_record({"w": np.ones(4), "b": np.ones(4, ml_dtypes.bfloat16)})
    for name, array in from_record(record).items():
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(record[name].data, np.uint8))


@pytest.mark.parametrize("array", [np.array(["Cat"]), np.array([{}]), np.zeros(1, [("a", "<i4")])])
def test_anything_but_numbers_and_booleans_is_refused_on_sending(array):
    for bare in ((), {"w"}):
        with pytest.raises(TypeError, match=r"`w`.*cannot be sent"):
            to_record({"w": array}, bare)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def described(shape):
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"


def npy_with_header(header, body=b"", version=(1, 0)):
    packed = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(packed)) + packed + body


class Bomb:
    """Goes off when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


GOOD = npy(np.ones((2, 3), np.float32))
DAMAGED = {
    "empty": GOOD[:0],
    "cut in the magic": GOOD[:4],
    "cut in the header": GOOD[:60],
    "cut in the body": GOOD[:-1],
    "one byte too many": GOOD + b"\0",
    "other shape": npy(np.ones((3, 2), np.float32)),
    "other dtype": npy(np.ones((2, 3), np.int32)),
    "other number of dimensions": npy(np.ones(6, np.float32)),
    "pickled objects": npy(np.array([[Bomb()] * 3] * 2), allow_pickle=True),
    "strings": npy(np.array([["a"] * 3] * 2)),
    "records": npy(np.zeros((2, 3), [("a", "<f4")])),
    "zip archive": b"PK\x03\x04" + GOOD,
    "unknown version": npy_with_header(described((2, 3)), bytes(24), version=(9, 9)),
    "header that does not parse": npy_with_header("{'descr': (((((("),
    "header with an indent": npy_with_header("  {\n 'descr'"),
    "header with an open string": npy_with_header("'''"),
    "header that is not a dictionary": npy_with_header("[1, 2]"),
    "header with unhashable keys": npy_with_header("{[]: 1}"),
    "header with a call": npy_with_header("__import__('os').abort()"),
    "deeply nested header": npy_with_header("-" * 9000 + "1"),
    "huge header": npy_with_header(" " * 60000),
}  # fmt: skip


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_bytes_are_refused_by_name(data):
    record = ArrayRecord({"ok": Array(np.ones(2)), "w": Array("float32", (2, 3), "numpy.ndarray", data)})
    with pytest.raises(PayloadError, match="array `w`"):
        from_record(record)


@pytest.mark.parametrize(
    ("dtype", "shape", "stype", "data"),
    [
        ("float32", (2,), "numpy.ndarray", npy(np.ones((2, 1), np.float32))),
        ("float64", (2,), "numpy.ndarray", npy(np.ones(2, np.float32))),
        ("float32", (True, 6), "numpy.ndarray", npy_with_header(described((True, 6)), bytes(24))),
        ("float32", (-1,), "numpy.ndarray", npy_with_header(described((-1,)))),
        ("float32", (0, 10**30), "numpy.ndarray", npy_with_header(described((0, 10**30)))),
        ("object", (1,), "numpy.ndarray", npy(np.array([Bomb()]), allow_pickle=True)),
        ("str32", (1,), "numpy.ndarray", npy(np.array(["a"]))),
        ("void32", (1,), "numpy.ndarray", npy(np.zeros(1, "V4"))),
        ("bool", (2,), "numpy.ndarray", npy(np.ones(2, bool))[:-2] + b"\1\2"),
        ("float32", (1,), "torch", bytes(4)),
        ("float32", (1,), "lightning_fl_ext.raw", bytes(5)),
        ("object", (1,), "lightning_fl_ext.raw", bytes(8)),
        ("str32", (1,), "lightning_fl_ext.raw", bytes(4)),
        ("bool", (2,), "lightning_fl_ext.raw", bytes([1, 2])),
        ("float8_e3m4", (1,), "lightning_fl_ext.raw", bytes(1)),
        ("bfloat16", (2,), "lightning_fl_ext.raw", bytes(3)),
        ("bfloat16", (-2,), "lightning_fl_ext.raw", bytes(4)),
        ("bfloat16", (-1, -1), "lightning_fl_ext.raw", bytes(2)),
        ("bfloat16", (0, 2**63), "lightning_fl_ext.raw", b""),
        ("bfloat16", (True, 2), "lightning_fl_ext.raw", bytes(4)),
        ("bfloat16", (1,) * 70, "lightning_fl_ext.raw", bytes(2)),
        ("bfloat16", (1,), "numpy.ndarray", npy(np.ones(1, ml_dtypes.bfloat16))),
    ],
)  # fmt: skip
def test_false_announcements_are_refused_by_name(dtype, shape, stype, data):
    with pytest.raises(PayloadError, match="array `w`"):
        from_record(ArrayRecord({"w": Array(dtype, shape, stype, data)}))


def test_a_header_that_was_read_before_does_not_hide_what_is_wrong_with_another_array():
    packed = to_record({"w": np.arange(3.0)})["w"]
    for _ in range(2):
        assert from_record(ArrayRecord({"w": packed}))["w"].tolist() == [0, 1, 2]
        for dtype, shape, data in (
            ("float32", packed.shape, packed.data),
            (packed.dtype, (4,), packed.data),
            (packed.dtype, packed.shape, packed.data[:-1]),
            (packed.dtype, packed.shape, packed.data[:20] + b"?" + packed.data[21:]),
        ):
            with pytest.raises(PayloadError, match="array `w`"):
                from_record(ArrayRecord({"w": Array(dtype, shape, packed.stype, data)}))


def test_a_header_of_any_length_is_read():
    deep = np.zeros((1,) * 60)
    padded = to_record({"w": deep})["w"]
    assert len(padded.data) - deep.nbytes > 256
    assert from_record(ArrayRecord({"w": padded}))["w"].shape == deep.shape


def test_payload_error_is_one_of_the_packages_errors():
    assert issubclass(PayloadError, LightningFLError)


def test_the_message_tells_what_was_announced_and_what_came():
    with pytest.raises(PayloadError, match=r"announced as float64\[2\], holds float32\[3\]"):
        from_record(ArrayRecord({"w": Array("float64", (2,), "numpy.ndarray", npy(np.ones(3, "<f4")))}))


ORIGINALS = [
    to_record({"w": array})["w"]
    for array in (
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.ones((2, 2))),
        np.array([True, False]),
        np.array(3),
        np.arange(4, dtype=ml_dtypes.bfloat16),
    )
] + [to_record({"w": np.arange(5, dtype=np.uint8)}, bare={"w"})["w"]]


TOKENS = [b"(", b"'", b"O", b"f8", b"\n", b"-", b"\0", b"{", b"L"]


@pytest.mark.parametrize("dtype", NUMPY + EXTENDED)
def test_what_is_written_into_a_record_is_what_a_record_of_it_would_hold(dtype):
    arrays = {name: random_bits(dtype, shape) for name, shape in zip("cabed", SHAPES, strict=True)}
    where = {}

    def write(out):
        for name, array in arrays.items():
            out[name][...] = array
            where[name] = out[name].ctypes.data

    record, expected = written_record(arrays, write), to_record(arrays)
    assert list(record) == list(arrays)
    for name, array in from_record(record).items():
        assert record[name] == expected[name]
        assert array.ctypes.data == where[name] or array.nbytes < 2, "without a copy"


def test_a_record_does_not_change_with_an_array_that_its_writer_kept():
    kept = []

    def write(out):
        out["w"][...] = 1
        kept.append(out["w"])

    record = written_record({"w": np.zeros(3), "n": np.array(0)}, write)
    kept[0][...] = 2
    assert from_record(record)["w"].tolist() == [1, 1, 1]


def test_an_error_of_the_writer_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        written_record({"w": np.zeros(3)}, lambda out: 1 // 0)


@st.composite
def mutated(draw):
    original = draw(st.sampled_from(ORIGINALS))
    data = bytearray(original.data)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 80))]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        else:
            data[at : at + 1] = draw(st.sampled_from(TOKENS))
    dtype = draw(st.sampled_from([original.dtype, original.dtype, "float64", "object", "", "bfloat16"]))
    shape = draw(st.one_of(st.just(original.shape), st.lists(st.integers(-2, 4), max_size=3).map(tuple)))
    stype = draw(st.sampled_from([original.stype] * 3 + ["numpy.ndarray", "lightning_fl_ext.raw", "x"]))
    return Array(dtype, shape, stype, bytes(data))


@given(mutated())
@settings(max_examples=1000)
@pytest.mark.filterwarnings("ignore::UserWarning")  # numpy's, about headers that Python 2 would write
def test_a_mutated_payload_is_refused_or_gives_an_array_as_announced(packed):
    try:
        (array,) = from_record(ArrayRecord({"w": packed})).values()
    except PayloadError:
        return
    assert (array.dtype.name, array.shape) == (packed.dtype, packed.shape)
    assert len(array.tobytes()) == array.nbytes  # every element can be read, also of none


def test_what_arithmetic_makes_of_arrays_without_dimensions_is_taken():
    count = np.array(3) + np.array(4)
    assert isinstance(count, np.generic)
    with pytest.raises(TypeError, match="Invalid arguments for Array"):
        Array(count)
    again = from_record(to_record({"count": count}))["count"]
    assert (again.shape, again.dtype, int(again)) == ((), count.dtype, 7)
