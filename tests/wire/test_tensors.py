"""Tensor to array and back: the same bits, for every dtype that both sides have."""

import ml_dtypes
import numpy as np
import pytest
import torch

from lightning_fl_ext.wire import to_numpy, to_torch

NUMPY = ["float64", "float32", "float16", "complex64", "complex128", "bool"] + [
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
]
EXTENDED = ["bfloat16"] + [f"float8_{kind}" for kind in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]
SHAPES = [(), (0,), (3, 0), (5,), (2, 3, 4)]


def random_bits(name, shape):
    """A tensor of random bits, NaN payloads among them (0 and 1 for bool)."""
    dtype = getattr(torch, name)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 2 if name == "bool" else 256, count, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(value):
    if isinstance(value, torch.Tensor):
        value = value.contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else np.empty(0)
    return np.ascontiguousarray(value).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NUMPY + EXTENDED)
def test_every_dtype_and_shape_keeps_its_bits_both_ways(name, shape):
    tensor = random_bits(name, shape)
    array = to_numpy(tensor)
    assert (array.dtype.name, array.shape, bits(array)) == (name, shape, bits(tensor))
    back = to_torch(array)
    assert (back.dtype, back.shape, bits(back)) == (tensor.dtype, tensor.shape, bits(tensor))


@pytest.mark.parametrize("name", EXTENDED)
def test_ml_dtypes_hold_the_values_torch_holds(name):
    tensor = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    np.testing.assert_array_equal(to_numpy(tensor).astype(np.float32), tensor.float().numpy())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_torch_dtype_either_travels_or_is_refused_with_a_type_error():
    dtypes = {d for d in vars(torch).values() if isinstance(d, torch.dtype)}
    travelling = set()
    for dtype in dtypes:
        if str(dtype).startswith(("torch.q", "torch.bits")):
            continue  # quantized types are below; `bits` cannot even be made
        tensor = torch.zeros(4, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else None
        tensor = torch.zeros(4, dtype=dtype) if tensor is None else tensor
        name = str(dtype).removeprefix("torch.")
        if name in NUMPY + EXTENDED:
            assert to_torch(to_numpy(tensor)).dtype == dtype
            travelling.add(name)
        else:
            with pytest.raises(TypeError, match=name):
                to_numpy(tensor)
    assert travelling == {*NUMPY, *EXTENDED}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int64"])
def test_layout_does_not_matter_and_arrays_come_out_contiguous(name):
    tensor = random_bits(name, (4, 6))
    for view in (tensor.T, tensor[:, ::2], tensor[2:], tensor.expand(2, 4, 6)):
        array = to_numpy(view)
        assert array.flags["C_CONTIGUOUS"]
        assert bits(array) == bits(view.contiguous())


def test_conjugate_and_negative_views_are_resolved():
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    assert to_numpy(tensor.conj()).tolist() == [1 - 2j, 3 + 4j]
    assert to_numpy(tensor.conj().imag).tolist() == [-2.0, 4.0]


def test_gradients_are_left_behind():
    assert to_numpy(torch.nn.Parameter(torch.ones(2)).exp()).dtype == np.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16", "bool"])
def test_neither_direction_shares_memory(name):
    tensor = torch.ones(3, dtype=getattr(torch, name))
    array = to_numpy(tensor)
    back = to_torch(array)
    tensor.zero_()
    assert array.astype(float).tolist() == [1.0, 1.0, 1.0]
    assert not array.flags.writeable
    back.zero_()
    assert array.astype(float).tolist() == [1.0, 1.0, 1.0]


def test_to_torch_takes_read_only_fortran_ordered_strided_and_big_endian_arrays():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = np.frombuffer(array.tobytes(), np.float32).reshape(2, 3)
    for same in (np.asfortranarray(array), array.astype(">f4"), frozen, array[::-1][::-1]):
        tensor = to_torch(same)
        assert tensor.is_contiguous()
        assert tensor.tolist() == array.tolist()
    strided = np.arange(8, dtype=ml_dtypes.bfloat16).reshape(2, 4)[:, ::2].T
    assert to_torch(strided).tolist() == [[0.0, 4.0], [2.0, 6.0]]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(2, device="meta"), "meta"),
        (lambda: torch.zeros(2, dtype=torch.complex32), "complex32"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_a_dense_array_are_refused(make, word):
    with pytest.raises(TypeError, match=word):
        to_numpy(make())


@pytest.mark.parametrize(
    "array", [np.array(["Cat"]), np.array([{}]), np.zeros(1, np.longdouble), np.zeros(1, ml_dtypes.int4)]
)
def test_arrays_without_a_tensor_are_refused(array):
    with pytest.raises(TypeError, match="no torch counterpart"):
        to_torch(array)
