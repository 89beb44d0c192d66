"""The flat form: what goes out comes back, and nothing else gets in."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.metrics import DamagedMetricPack, MetricPack, MetricStates

dtypes = st.sampled_from(["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
lists = dtypes.flatmap(
    lambda dtype: st.lists(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0)), min_size=1, max_size=4
    ).map(tuple)
)
names = st.text(min_size=1, max_size=8)


def pack(client_id="a"):
    states = {"tp": np.array([1, 2], np.int64), "preds": (np.float32([1, 2]), np.zeros((0, 3), np.float32))}
    metric = MetricStates("torchmetrics.X", {"threshold": "0.5"}, 2, states)
    return MetricPack({"val.m": metric}, client_id, num_examples=7)


@given(
    st.dictionaries(names, st.dictionaries(names, arrays | lists, max_size=3), max_size=3), st.none() | names
)
def test_a_pack_comes_back_bit_by_bit(states, client_id):
    metrics = {name: MetricStates("c", {"k": "1"}, 3, entry) for name, entry in states.items()}
    sent = MetricPack(metrics, client_id, 5)
    flat, header = sent.to_arrays()
    if len(flat) < sum(map(len, states.values())):
        return  # two keys fell together: "a/b" + "c" and "a" + "b/c"
    got = MetricPack.from_arrays(flat, header, client_id=client_id)
    assert (got.client_id, got.num_examples, got.withheld) == (client_id, 5, False)
    assert got.digest == sent.digest
    for name, metric in metrics.items():
        for state, value in metric.states.items():
            back = got.metrics[name].states[state]
            assert type(back) is type(value)
            for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (back, value)), strict=True):
                assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_withheld_and_empty_packs_come_back():
    assert MetricPack.from_arrays(*MetricPack({}, "b", 3, withheld=True).to_arrays()).withheld
    empty_list = MetricPack({"m": MetricStates("c", {}, 1, {"preds": ()})})
    assert MetricPack.from_arrays(*empty_list.to_arrays()).metrics["m"].states == {"preds": ()}


def test_what_is_excluded_comes_back():
    sent = MetricPack({}, "b", 3, excluded=("val", "auroc"))
    assert MetricPack.from_arrays(*sent.to_arrays()).excluded == ("val", "auroc")


def test_a_pack_without_an_id_gets_that_of_its_sender():
    assert MetricPack.from_arrays(*pack(None).to_arrays(), client_id="b").client_id == "b"


def test_the_text_of_a_pack_is_short():
    assert repr(pack()) == "MetricPack(client_id='a', num_examples=7, withheld=False, excluded=())"


def test_a_list_state_is_one_array_whatever_its_length():
    flat, _ = pack().to_arrays()
    assert {key: value.shape for key, value in flat.items()} == {"val.m/tp": (2,), "val.m/preds": (2,)}


def test_big_endian_arrays_are_read_as_their_numbers():
    flat, header = pack().to_arrays()
    flat["val.m/tp"] = flat["val.m/tp"].astype(">i8")
    tp = MetricPack.from_arrays(flat, header).metrics["val.m"].states["tp"]
    assert tp.tolist() == [1, 2]
    assert tp.dtype.isnative


def test_the_digest_tells_packs_apart():
    other = pack()
    other.metrics["val.m"].states["tp"][0] = 9
    assert len({pack().digest, other.digest, pack("b").digest}) == 3


def edited(edit):
    flat, header = pack().to_arrays()
    parsed = json.loads(header)
    flat = dict(flat)
    edit(flat, parsed, parsed["metrics"]["val.m"])
    return flat, json.dumps(parsed)


DAMAGED = {
    "array missing": (lambda a, h, m: a.pop("val.m/tp"), r"metric 'val.m': expected an array 'val.m/tp'"),
    "array too many": (lambda a, h, m: a.update(x=np.zeros(1)), "no further arrays, got .*'x'"),
    "not an array": (lambda a, h, m: a.update({"val.m/tp": [1, 2]}), "metric 'val.m'.*got list"),
    "objects": (
        lambda a, h, m: a.update({"val.m/tp": np.array([1, None])}),
        "metric 'val.m'.*dtypes.*got object",
    ),
    "other shape": (lambda a, h, m: a.update({"val.m/tp": np.zeros(3, np.int64)}), r"\[2\].*got \[3\]"),
    "other dtype": (lambda a, h, m: a.update({"val.m/tp": np.zeros(2)}), "'int64'.*got float64"),
    "truncated list": (
        lambda a, h, m: a.update({"val.m/preds": np.zeros(1, np.float32)}),
        r"\[2\].*got \[1\]",
    ),
    "list of other shape": (
        lambda a, h, m: a.update({"val.m/preds": np.zeros((2, 1), np.float32)}),
        r"\[2\].*got \[2, 1\]",
    ),
    "shapes not a list": (lambda a, h, m: m["states"]["preds"].update(shapes=3), "list of shapes.*got 3"),
    "negative size": (lambda a, h, m: m["states"]["preds"].update(shapes=[[-1], [3]]), "list of shapes"),
    "size not a count": (lambda a, h, m: m["states"]["preds"].update(shapes=[[True], [1]]), "list of shapes"),
    "huge empty shape": (
        lambda a, h, m: m["states"]["preds"].update(shapes=[[2], [0, 2**60, 2**60]]),
        "list of shapes",
    ),
    "shape and shapes": (lambda a, h, m: m["states"]["preds"].update(shape=[2]), "keys"),
    "layout not an object": (lambda a, h, m: m["states"].update(tp=None), "keys.*got None"),
    "states not an object": (lambda a, h, m: m.update(states=[]), "`states`"),
    "states without updates": (lambda a, h, m: m.update(updates=0), "empty without updates"),
    "negative updates": (lambda a, h, m: m.update(updates=-1), "count as `updates`, got -1"),
    "updates not a number": (lambda a, h, m: m.update(updates="2"), "count as `updates`"),
    "updates true": (lambda a, h, m: m.update(updates=True), "count as `updates`"),
    "updates beyond exact floats": (lambda a, h, m: m.update(updates=2**60), "count as `updates`"),
    "class not a text": (lambda a, h, m: m.update({"class": 1}), "`class`"),
    "configuration not texts": (lambda a, h, m: m.update(configuration={"a": 1}), "`configuration`"),
    "metric key missing": (
        lambda a, h, m: m.pop("class"),
        "metric 'val.m': expected an object with the keys",
    ),
    "metrics not an object": (lambda a, h, m: h.update(metrics=[1]), "`metrics`"),
    "withheld with metrics": (lambda a, h, m: h.update(withheld=True), "empty if withheld"),
    "excluded not a list": (lambda a, h, m: h.update(excluded="val.m"), "`excluded`, got 'val.m'"),
    "excluded not texts": (lambda a, h, m: h.update(excluded=[3]), "`excluded`"),
    "withheld not a bool": (lambda a, h, m: h.update(withheld=1), "`withheld`"),
    "examples negative": (lambda a, h, m: h.update(num_examples=-3), "count as `num_examples`"),
    "client id not a text": (lambda a, h, m: h.update(client_id=7), "`client_id`"),
    "other format": (lambda a, h, m: h.update(format=2), "format 1, got 2"),
    "key too many": (lambda a, h, m: h.update(extra=1), "keys"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused_by_client_and_metric(edit, message):
    flat, header = edited(edit)
    with pytest.raises(DamagedMetricPack, match=f"(?s)metrics of (client 'a'|a client).*{message}"):
        MetricPack.from_arrays(flat, header)


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", "NaN", "1" * 10_000, "[" * 100_000, '{"metrics": {}}', b"\xff", None],
    ids=["empty", "cut", "list", "null", "nan", "long number", "deep", "keys", "bytes", "none"],
)
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(DamagedMetricPack, match="metrics of client 'a'"):
        MetricPack.from_arrays({}, header, client_id="a")


def test_a_pack_under_another_clients_name_is_refused():
    with pytest.raises(DamagedMetricPack, match="metrics of client 'b': expected `client_id` 'b', got 'a'"):
        MetricPack.from_arrays(*pack("a").to_arrays(), client_id="b")


def test_messages_stay_short_and_on_one_line():
    hostile = "x\n" * 100_000
    flat, header = edited(lambda a, h, m: h.update(client_id=hostile, metrics={hostile: {"a": hostile}}))
    with pytest.raises(DamagedMetricPack) as caught:
        MetricPack.from_arrays(flat, header)
    assert len(str(caught.value)) < 1500
    assert "\n" not in str(caught.value)


@given(st.data())
def test_no_edit_of_the_header_gets_another_kind_of_error(data):
    flat, header = pack().to_arrays()
    tree = json.loads(header)
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    node = tree
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if data.draw(st.booleans()) or not isinstance(node[key], dict | list):
            node[key] = data.draw(junk)
            break
        node = node[key]
    try:
        read = MetricPack.from_arrays(copy.deepcopy(flat), json.dumps(tree))
    except DamagedMetricPack:
        return
    again = read.to_arrays()
    assert all(np.array_equal(again[0][key], flat[key]) for key in again[0])
