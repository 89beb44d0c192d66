"""Trees of plain values and tensors: out of the files comes what went in, bit by bit and type by type."""

import copy
import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.files import tensors_from_bytes, tensors_to_bytes
from lightning_fl_ext.trees import flatten, unflatten
from lightning_fl_ext.wire import to_record


def through_files(tree):
    """As a client keeps a tree: JSON text, and the bytes of a safetensors file."""
    data, tensors = flatten(tree)
    return unflatten(json.loads(json.dumps(data)), tensors_from_bytes(tensors_to_bytes(tensors)))


def assert_identical(left, right):
    """Equal, and of the same types; floats and tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert (left.dtype, left.shape, left.stride()) == (right.dtype, right.shape, right.stride())
        bits = [tensor.reshape(-1).view(torch.uint8).tolist() for tensor in (left, right)]
        assert bits[0] == bits[1]
        return
    assert type(left) is type(right)
    if isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
    elif isinstance(left, float):
        same = left == right and math.copysign(1, left) == math.copysign(1, right)
        assert same or (math.isnan(left) and math.isnan(right))
    elif isinstance(left, dict):
        assert_identical(list(left), list(right))
        assert_identical(list(left.values()), list(right.values()))
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_identical(one, other)
    else:
        assert left == right


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    raw = draw(st.binary(min_size=8 * math.prod(shape), max_size=8 * math.prod(shape)))
    made = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    made = made % 2 if dtype is torch.bool else made
    made = made.view(dtype)[: math.prod(shape)].reshape(shape)
    if draw(st.booleans()):
        made = made.permute(draw(st.permutations(range(made.dim()))))
    return made.clone()  # keeps the strides


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.integers() | st.text() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
leaves = plain | tensors() | st.sampled_from(DTYPES) | st.floats(width=32).map(np.float32)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(trees)
def test_what_was_kept_comes_back_bit_by_bit(tree):
    assert_identical(through_files(tree), tree)


def test_keys_of_other_types_and_names_with_dots_are_told_apart():
    tree = {1: torch.ones(1), "1": torch.zeros(1), "a.b": torch.ones(2), "a": {"b": torch.zeros(2)}}
    assert_identical(through_files(tree), tree)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.array(1.5),
        np.float64(0.1),
        np.bool_(True),
        np.array([1.5], dtype=ml_dtypes.bfloat16),
    ],
    ids=repr,
)
def test_numpy_arrays_and_scalars_keep_their_types(value):
    assert_identical(through_files([value]), [value])


def test_an_array_record_comes_back_as_one_with_the_same_bytes():
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.array([1.5], dtype=ml_dtypes.bfloat16),
        "n": np.array(3),
    }
    (back,) = through_files([to_record(arrays)])
    assert type(back) is ArrayRecord
    assert list(back) == list(arrays)
    assert [array.data for array in back.values()] == [array.data for array in to_record(arrays).values()]


def test_an_array_that_came_back_can_be_written_to():
    through_files([np.zeros(2)])[0][0] = 1


def test_counters_stay_counters_and_other_dicts_become_dicts():
    """`MultiStepLR` keeps its milestones in a Counter, torch its states in dicts of other kinds."""
    tree = {"milestones": Counter({3: 2, 8: 1}), "a": OrderedDict(x=1), "b": defaultdict(dict, {0: {}})}
    assert through_files(tree) == tree
    assert [type(value) for value in through_files(tree).values()] == [Counter, dict, dict]


def test_tensors_in_one_memory_come_back_apart():
    whole = torch.arange(4.0)
    left, right, again = through_files([whole[:2], whole[1:3], whole])
    assert_identical([left, right, again], [whole[:2].clone(), whole[1:3].clone(), whole.clone()])
    left += 1
    assert right.tolist() == [1, 2]


def test_what_was_flattened_does_not_change_with_the_original():
    original = {"a": torch.zeros(2), "b": [1]}
    data, tensors_ = flatten(original)
    expected = copy.deepcopy(original)
    original["a"] += 1
    original["b"].append(2)
    assert_identical(unflatten(data, tensors_), expected)


@pytest.mark.parametrize("view", [torch.Tensor.conj, lambda t: t.conj().imag], ids=["conjugate", "negative"])
def test_lazy_views_are_resolved(view):
    value = view(torch.tensor([1 + 2j, 3 - 4j]))
    assert torch.equal(through_files([value])[0], value.resolve_conj().resolve_neg())


def test_a_parameter_comes_back_as_a_tensor():
    (back,) = through_files([torch.nn.Parameter(torch.ones(2))])
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_channels_last_stays_so():
    value = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert_identical(through_files([value]), [value])


class Colour(enum.IntEnum):
    RED = 1


class Named(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (print, "builtins.builtin_function_or_method"),
        (object(), "builtins.object"),
        ({1}, "builtins.set"),
        (b"bytes", "builtins.bytes"),
        (Colour.RED, "Colour"),
        (torch.ones(2).to_sparse(), "torch.Tensor"),
        (torch.ones(2, device="meta"), "torch.Tensor"),
        (torch.ones(2).as_subclass(Named), "Named"),
        (np.array(["text"]), "numpy.ndarray"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_anything_else_is_refused_with_its_place_and_type(value, kind):
    with pytest.raises(
        LightningFLError, match=rf"`optimizer\.groups\.1\.fn` of type .*{kind} cannot be kept"
    ):
        flatten({"groups": [0, {"fn": value}]}, "optimizer")


def test_the_error_ends_with_what_to_do():
    with pytest.raises(LightningFLError, match=r"tuples and dicts of them\. Leave it out\.$"):
        flatten([object()], advice="Leave it out.")


@pytest.mark.parametrize("key", [torch.ones(1), np.int64(1), Colour.RED, frozenset()], ids=repr)
def test_a_key_of_another_kind_is_refused(key):
    with pytest.raises(LightningFLError, match=r"a key of `state\.a` of type .* cannot be kept"):
        flatten({"a": {key: 1}})
