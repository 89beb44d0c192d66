"""What of a model travels, how it is checked, and what a refusal says."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import digest
from lightning_fl_ext.wire import Exchange, StateMismatchError, WeightExchange, from_record, to_record

TRAVELLING = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
]


class Odd(nn.Module):
    """A module with every kind of entry that a state dict can have."""

    def __init__(self, fill=0):
        super().__init__()
        for dtype in TRAVELLING:
            name = str(dtype).removeprefix("torch.")
            values = torch.arange(6) + fill if dtype != torch.bool else (torch.arange(6) + fill) % 2
            self.register_buffer(f"{name}_matrix", values.float().to(dtype).reshape(2, 3))
            self.register_buffer(f"{name}_scalar", values[1].float().to(dtype))
            self.register_buffer(f"{name}_empty", torch.empty((2, 0), dtype=dtype))
        self.register_buffer("strided", (torch.arange(24.0) + fill).reshape(4, 6)[:, ::2].T)
        self.layer = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.layer.weight
        self.norm = nn.BatchNorm1d(3)
        nn.init.constant_(self.layer.weight, fill)


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def load(module, arrays, exchange):
    incompatible = module.load_state_dict(exchange.unpack(arrays, module.state_dict()), strict=False)
    assert not incompatible.unexpected_keys


def test_a_whole_state_dict_goes_through_flower_records_to_the_bit():
    source, target, exchange = Odd(fill=1), Odd(), WeightExchange()
    load(target, from_record(to_record(exchange.pack(source.state_dict()))), exchange)
    expected = source.state_dict()
    for name, tensor in target.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert tensor.shape == expected[name].shape
        assert bits(tensor) == bits(expected[name]), name
    assert target.tied.weight is target.layer.weight


def test_pack_names_every_entry_in_state_dict_order_and_tied_ones_once():
    state = Odd().state_dict()
    assert list(WeightExchange().pack(state)) == [name for name in state if name != "tied.weight"]


def test_pack_copies_so_that_later_training_does_not_change_what_is_sent():
    model = nn.Linear(2, 2)
    arrays = WeightExchange().pack(model.state_dict())
    before = digest(arrays)
    nn.init.zeros_(model.weight)
    assert digest(arrays) == before


def test_tied_tensors_travel_under_the_first_name_that_is_selected():
    state = Odd().state_dict()
    assert "layer.weight" not in WeightExchange(exclude="layer.weight").pack(state)
    assert "tied.weight" in WeightExchange(exclude="layer.weight").pack(state)
    assert list(WeightExchange(include="tied.*").pack(state)) == ["tied.weight", "tied.bias"]


def test_tied_tensors_on_meta_are_told_from_others_of_their_shape():
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
        model["c"].weight = model["a"].weight
    names = ["a.weight", "a.bias", "b.weight", "b.bias", "c.bias"]
    assert list(WeightExchange().select(model.state_dict())) == names


def test_tied_tensors_may_come_under_every_name_as_a_plain_state_dict_has_them():
    """And not with different values: one would get lost."""
    source, target, exchange = Odd(fill=1), Odd(), WeightExchange()
    arrays = exchange.pack(source.state_dict())
    load(target, {**arrays, "tied.weight": arrays["layer.weight"]}, exchange)
    assert target.tied.weight.tolist() == source.layer.weight.tolist()
    with pytest.raises(
        StateMismatchError, match=r"tied\.weight and layer\.weight are one tensor in this model"
    ):
        exchange.unpack({**arrays, "tied.weight": arrays["layer.weight"] + 1}, target.state_dict())


def test_a_pattern_among_several_that_includes_nothing_is_refused():
    state = {name: torch.ones(1) for name in NAMES}
    with pytest.raises(LightningFLError, match=r"the pattern `hedd\.\*` includes nothing.*body\.weight"):
        WeightExchange(include=("body.*", "hedd.*")).pack(state)


def test_views_of_one_memory_that_differ_are_not_taken_for_tied():
    base = torch.tensor([[1 + 2j, 3 - 4j], [5j, 6]])
    state = {"a": base, "conj": base.conj(), "T": base.T, "row": base[0], "real": base.real}
    state |= {"imag": base.imag, "neg": base.conj().imag}
    for name, array in WeightExchange().pack(state).items():
        assert array.tolist() == state[name].tolist(), name


def test_empty_tensors_are_not_taken_for_tied():
    arrays = WeightExchange().pack({"a": torch.empty(0, 2), "b": torch.empty(0, 2, dtype=torch.int8)})
    assert [(a.shape, a.dtype.name) for a in arrays.values()] == [((0, 2), "float32"), ((0, 2), "int8")]


class WithExtraState(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.layer, self.extra = nn.Linear(1, 1), extra

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, extra):
        self.extra = extra


def test_extra_state_that_is_a_tensor_travels():
    source, target, exchange = WithExtraState(torch.ones(2)), WithExtraState(torch.zeros(2)), WeightExchange()
    load(target, exchange.pack(source.state_dict()), exchange)
    assert target.extra.tolist() == [1.0, 1.0]


def test_extra_state_that_is_not_a_tensor_stays_at_home():
    source, target, exchange = WithExtraState({"step": 1}), WithExtraState({"step": 2}), WeightExchange()
    arrays = exchange.pack(source.state_dict())
    assert list(arrays) == ["layer.weight", "layer.bias"]
    load(target, arrays, exchange)
    assert target.extra == {"step": 2}


NAMES = ["body.weight", "body.bias", "body.bn.running_mean", "head.weight"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAMES),
        ({"include": "body.*"}, NAMES[:3]),
        ({"include": ("head.*", "*.bias")}, [NAMES[1], NAMES[3]]),
        ({"exclude": "head.*"}, NAMES[:3]),
        ({"exclude": ["*.bn.*", "head.*"]}, NAMES[:2]),
        ({"include": "body.*", "exclude": "*.bias"}, [NAMES[0], NAMES[2]]),
        ({"include": "BODY.*"}, None),
    ],
)
def test_patterns_choose_by_whole_name_and_case(options, expected):
    state = {name: torch.ones(1) for name in NAMES}
    exchange = WeightExchange(**options)
    if expected is None:
        with pytest.raises(LightningFLError, match=r"selects none of the model's 4 entries.*body\.weight"):
            exchange.pack(state)
    else:
        assert list(exchange.pack(state)) == expected


def test_what_does_not_travel_is_left_alone_and_refused_if_it_comes():
    model = nn.ModuleDict({"body": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    everything = WeightExchange().pack(model.state_dict())
    exchange = WeightExchange(exclude="head.*")
    before = model["head"].weight.item()
    load(model, {name: np.zeros_like(a) for name, a in everything.items() if "body" in name}, exchange)
    assert (model["body"].weight.item(), model["head"].weight.item()) == (0.0, before)
    with pytest.raises(StateMismatchError, match=r"head\.weight: expected nothing, got float32\[1, 1\]"):
        exchange.unpack(everything, model.state_dict())


def test_a_model_without_entries_travels_as_nothing():
    assert WeightExchange().pack({}) == WeightExchange().unpack({}, {}) == {}


STATE = {"w": torch.zeros(2, 3), "b": torch.zeros(3), "steps": torch.tensor(0), "half": torch.zeros(2).half()}


def test_the_refusal_lists_each_difference_and_nothing_else():
    arrays = {
        "w": np.zeros((3, 2), np.float32),
        "steps": np.zeros((), np.float64),
        "half": np.zeros(2, np.float16),
        "extra": np.zeros(1, np.int8),
    }
    with pytest.raises(StateMismatchError) as error:
        WeightExchange().unpack(arrays, STATE)
    assert str(error.value).splitlines() == [
        "The arrays do not fit the model. Both sides must use the same model and the same exchange, with the"
        " same patterns. 4 differences:",
        "  w: expected float32[2, 3], got float32[3, 2]",
        "  steps: expected int64[], got float64[]",
        "  b: expected float32[3], got nothing",
        "  extra: expected nothing, got int8[1]",
    ]


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({}, "  w: expected float32[1], got nothing"),
        ({"w": np.zeros(1, np.float32), "v": np.zeros(2, bool)}, "  v: expected nothing, got bool[2]"),
        ({"w": np.zeros(2, np.float32)}, "  w: expected float32[1], got float32[2]"),
    ],
)
def test_a_single_difference_of_any_kind_is_enough(arrays, line):
    with pytest.raises(StateMismatchError) as error:
        WeightExchange().unpack(arrays, {"w": torch.zeros(1)})
    assert str(error.value).splitlines()[1:] == [line]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3), np.float32),
        np.zeros((6,), np.float32),
        np.zeros((2, 3, 1), np.float32),
        np.zeros((2, 3), np.float64),
        np.zeros((2, 3), np.int32),
        np.zeros((2, 3), np.longdouble),
        np.full((2, 3), "Cat"),
    ],
)
def test_nothing_is_broadcast_reshaped_or_cast(wrong):
    with pytest.raises(StateMismatchError, match=r"w: expected float32\[2, 3\], got"):
        WeightExchange().unpack({"w": wrong}, {"w": torch.zeros(2, 3)})


def test_float16_and_bfloat16_are_not_mistaken_for_each_other():
    for ours, theirs in itertools.permutations([torch.float16, torch.bfloat16, torch.int16], 2):
        arrays = WeightExchange().pack({"w": torch.zeros(2, dtype=theirs)})
        with pytest.raises(StateMismatchError):
            WeightExchange().unpack(arrays, {"w": torch.zeros(2, dtype=ours)})


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "net.", "_forward_module."])
def test_a_common_prefix_on_either_side_is_named(prefix):
    bare = nn.Linear(1, 1).state_dict()
    wrapped = {prefix + name: tensor for name, tensor in bare.items()}
    exchange = WeightExchange()
    with pytest.raises(StateMismatchError, match=rf"(?s)sent carry the prefix `{prefix}`"):
        exchange.unpack(exchange.pack(wrapped), bare)
    with pytest.raises(StateMismatchError, match=rf"(?s)sent lack the prefix `{prefix}`"):
        exchange.unpack(exchange.pack(bare), wrapped)


def test_a_prefix_within_a_name_is_named_too():
    plain = nn.ModuleDict({"body": nn.Linear(1, 1)})
    compiled = nn.ModuleDict({"body": nn.ModuleDict({"_orig_mod": nn.Linear(1, 1)})})
    exchange = WeightExchange()
    with pytest.raises(StateMismatchError, match=r"carry the prefix `_orig_mod\.`"):
        exchange.unpack(exchange.pack(compiled.state_dict()), plain.state_dict())


def test_unrelated_names_get_no_hint():
    exchange = WeightExchange()
    with pytest.raises(StateMismatchError) as error:
        exchange.unpack({"model.other": np.zeros(1, np.float32)}, {"w": torch.zeros(1)})
    assert "prefix" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: torch.eye(2).to_sparse(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(2, device="meta"), "meta"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_an_array_is_refused_by_name_unless_excluded(make, word):
    state = {"w": torch.ones(1), "odd": make()}
    with pytest.raises(TypeError, match=rf"`odd` cannot travel: .*{word}.*`exclude`"):
        WeightExchange().pack(state)
    assert list(WeightExchange(exclude="odd").pack(state)) == ["w"]


def test_unpacked_tensors_share_no_memory_with_the_arrays():
    arrays = WeightExchange().pack(STATE)
    tensors = WeightExchange().unpack(arrays, STATE)
    tensors["w"].fill_(1)
    assert not arrays["w"].any()


def test_weight_exchange_is_an_exchange_and_shows_its_patterns():
    assert isinstance(WeightExchange(), Exchange)
    assert repr(WeightExchange(exclude="head.*")) == "WeightExchange(include=('*',), exclude=('head.*',))"


@pytest.mark.parametrize("pattern", ["head", "heads.*"])
def test_a_pattern_that_excludes_nothing_is_refused_before_anything_private_travels(pattern):
    state = {"body.weight": torch.zeros(2), "head.weight": torch.zeros(2)}
    with pytest.raises(LightningFLError, match=f"`{re.escape(pattern)}` excludes nothing"):
        WeightExchange(exclude=pattern).pack(state)
