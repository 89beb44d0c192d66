"""A hostile or broken server gets one clear error, in bounded time, and writes nowhere else."""

import os
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_fl_ext import FlowerBridge, LightningFLError, MaskExchange, client_app
from lightning_fl_ext.client.instruction_limits import InstructionError
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.wire import to_record
from lightning_fl_ext.wire.masks.names import MASKS, MODEL, SIZE

DEVICE = {"accelerator": "cpu", "devices": 1}
STATES = "metric-states"


@pytest.fixture
def source(kit):
    return kit.arrays_of(kit.fresh_module(1))


@pytest.fixture
def ask(kit, source, tmp_path):
    """Send a client that keeps its state a train message whose config holds this as well."""
    client = client_app(kit.Lit, lambda _: kit.loader(), DEVICE, keep_optimizer=tmp_path / "states")

    def send(arrays=None, kind="train", **config):
        message = kit.message(source if arrays is None else arrays, kind)
        for key, value in config.items():
            message.content["config"][key.replace("_", "-")] = value
        return client(message, kit.context(2, of=4))

    return send


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


WRONG = {
    "seed negative": ({"run_seed": -1}, "`run-seed`: expected a whole number from 0 to .*, got -1"),
    "seed huge": ({"run_seed": 2**63}, "`run-seed`: expected .*, got 9223372036854775808"),
    "seed a text": ({"run_seed": "7"}, "`run-seed`: expected .*, got '7'"),
    "seed a fraction": ({"run_seed": 7.0}, "`run-seed`: expected .*, got 7.0"),
    "seed a truth": ({"run_seed": True}, "`run-seed`: expected .*, got True"),
    "seed bytes": ({"run_seed": b"x" * 10**6}, "`run-seed`: expected .*, got b'x"),
    "seed a list": ({"run_seed": [1] * 10**6}, r"`run-seed`: expected .*, got \[1, 1, 1, 1, \.\.\.\]"),
    "round -1": ({"server_round": -1}, "`server-round`: expected a whole number from 0 .*, got -1"),
    "round 2^70": ({"server_round": 2**70}, "`server-round`: expected .*, got 1180591620717411303424"),
    "round not a number": ({"server_round": float("nan")}, "`server-round`: expected .*, got nan"),
    "round a text": ({"server_round": "1" * 10**6}, "`server-round`: expected .*, got '1111"),
    "rounds 2^70": ({"max_rounds": 2**70}, "`max-rounds`: expected a whole number from 0 .*, got 11805916"),
    "an algorithm a number": ({"algorithm": 0.5}, "`algorithm`: expected a text of 1 to 1024 .*, got 0.5"),
    "a pull endless": (
        {"proximal_mu": 10**400},
        "`proximal-mu`: expected a finite number of at least 0",
    ),
    "a pull backwards": ({"proximal_mu": -0.1}, "`proximal-mu`: expected a finite number of at least 0"),
    "question a text": ({STATES: "no"}, "`metric-states`: expected True or False, got 'no'"),
    "question a number": ({STATES: 2}, "`metric-states`: expected True or False, got 2"),
    "question a list": ({STATES: [True]}, r"`metric-states`: expected True or False, got \[True\]"),
    "run id empty": ({"run_id": ""}, "`run-id`: expected a text of 1 to 1024 characters, got ''"),
    "run id endless": ({"run_id": "x" * 10**6}, "`run-id`: expected a text of 1 to 1024"),
    "run id a list": ({"run_id": ["a"]}, r"`run-id`: expected .*, got \['a'\]"),
    "run id bytes": ({"run_id": b"a"}, "`run-id`: expected .*, got b'a'"),
    "run id a surrogate": ({"run_id": "\ud800"}, r"`run-id`: expected .*, got '\\ud800'"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_config_of_another_type_or_size_is_refused_by_key(ask, tmp_path, case):
    config, says = WRONG[case]
    with pytest.raises(InstructionError, match=f"the server's config {says}") as refused:
        ask(**config)
    assert len(str(refused.value)) < 400
    assert written(tmp_path) == []


plain = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(st.characters(), max_size=20), st.binary(max_size=20)
)
values = st.one_of(plain, *(st.lists(kind, max_size=3) for kind in (st.integers(), st.text(max_size=3))))
keys = st.sampled_from(["run-seed", "server-round", "run-id", "sampled", STATES, "other"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(config=st.dictionaries(keys, values, max_size=4))
def test_whatever_the_config_holds_the_client_answers_or_refuses(ask, tmp_path, config):
    refusal = ""
    try:
        assert ask(**config).has_content()
    except LightningFLError as error:
        refusal = str(error)
    assert len(refusal) < 400
    assert {path.split("/")[0] for path in written(tmp_path)} <= {"states"}
    assert {path.split("/")[1][:3] for path in written(tmp_path) if "/" in path} <= {"2-d"}


@given(
    owner=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    run=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
def test_no_id_leads_out_of_the_folder_for_states(tmp_path_factory, owner, run):
    root = tmp_path_factory.getbasetemp()
    path = StateFolder(root, owner, run).path
    assert os.path.normpath(path) == str(path)
    assert path.parent.parent == root
    assert all(len(part) < 60 for part in (path.name, path.parent.name))


@pytest.mark.parametrize("run_id", ["../../x", "/etc", "..", "a\0b", "C:\\x", "~root", "con", "." * 300])
def test_an_id_of_a_run_becomes_a_folder_inside_the_client_s_own(ask, tmp_path, run_id):
    assert ask(run_id=run_id).has_content()
    (client,) = (tmp_path / "states").iterdir()
    assert len(list(client.iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


def test_a_lower_round_than_before_goes_on_from_the_state_before_it(ask, tmp_path):
    for server_round in (5, 6, 2, 3):
        assert ask(server_round=server_round).has_content()
    rounds = {path.split("/")[3] for path in written(tmp_path) if path.count("/") == 3}
    assert rounds == {"round-00002", "round-00003"}


def array(shape, data=b"", dtype="float32", stype="lightning_fl_ext.raw"):
    return Array(dtype, shape, stype, data)


def many(source):
    return {**source, **{f"extra.{i}": np.zeros(0, np.float32) for i in range(5_000)}}


ARRAYS = {
    "of 5000 more names": (many, "do not fit the model.* 5000 differences:(?s:.*)and 4800 more"),
    "too many": (
        lambda _: ArrayRecord({f"{i}": array((0,)) for i in range(2**16 + 1)}),
        "weights: expected at most 65536 arrays, got 65537 of them",
    ),
    "with an endless name": (
        lambda source: {**source, "x" * 10**6: np.zeros(1, np.float32)},
        "weights: expected names of at most 1024 characters, got 'xxxx",
    ),
    "of another shape": (
        lambda source: {**source, "layer.bias": np.zeros(9, np.float32)},
        r"layer.bias: expected float32\[1\], got float32\[9\]",
    ),
    "of another dtype": (
        lambda source: {**source, "layer.bias": np.zeros(1, np.float64)},
        r"layer.bias: expected float32\[1\], got float64\[1\]",
    ),
    "missing": (lambda source: {"layer.bias": source["layer.bias"]}, "got nothing"),
    "none": (lambda _: ArrayRecord(), "got nothing"),
    "of a million axes": (
        lambda _: ArrayRecord({"layer.bias": array((2**31,) * 10**6)}),
        "`layer.bias`: expected at most 64 axes, .*, got",
    ),
    "of negative size": (
        lambda _: ArrayRecord({"layer.bias": array((-1, -1), b"1234")}),
        r"`layer.bias`: expected .* 0 or more entries each, got \(-1, -1\)",
    ),
    "that claim a terabyte": (
        lambda _: ArrayRecord({"layer.bias": array((2**38,), b"1234")}),
        "`layer.bias`.*: expected 1099511627776 bytes, got 4",
    ),
    "that are objects": (
        lambda _: ArrayRecord({"layer.bias": array((1,), b"", "O")}),
        "expected a dtype among .*, got 'O'",
    ),
}


@pytest.mark.parametrize("case", sorted(ARRAYS))
def test_arrays_that_no_server_sends_are_refused_by_name_in_bounded_memory(ask, source, tmp_path, case):
    make, says = ARRAYS[case]
    arrays = make(source)
    tracemalloc.start()
    try:
        with pytest.raises(LightningFLError, match=says) as refused:
            ask(arrays)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 50_000
    assert peak < 200e6
    assert not any("round-" in path for path in written(tmp_path))


def masks(**changed):
    arrays = {MASKS: np.zeros(40, np.uint8), SIZE: np.array(3), MODEL: np.zeros(32, np.uint8)}
    return to_record({name: array for name, array in {**arrays, **changed}.items() if array is not None})


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (masks(), "expected a payload that starts with"),
        (masks(**{SIZE: np.array(2**60)}), f"`{SIZE}`: expected one whole number from 0 to .*, got int64"),
        (masks(**{SIZE: np.array([3, 3])}), rf"`{SIZE}`: expected one whole number .*, got int64\[2\]"),
        (masks(**{SIZE: np.array(3.5)}), rf"`{SIZE}`: expected one whole number .*, got float64\[\], 3.5"),
        (masks(**{MASKS: None}), f"the server sent no .'{MASKS}'."),
        (masks(**{MASKS: np.zeros((2, 2), complex)}), "expected a payload that starts with"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(kit, arrays, says):
    with pytest.raises(LightningFLError, match=says):
        FlowerBridge.from_message(kit.message(arrays), kit.context(), exchange=MaskExchange())


def test_an_exchange_that_stumbles_over_the_arrays_is_named(kit, source):
    class Own(MaskExchange):
        def from_server(self, arrays, info):
            return {"x": arrays["no such array"]}

    with pytest.raises(InstructionError, match=r"round 1: Own\(.*cannot read .*: KeyError"):
        FlowerBridge.from_message(kit.message(source), kit.context(), exchange=Own())


@pytest.mark.parametrize(
    ("sampled", "says"),
    [
        ([f"{i}" for i in range(10**6)], "expected at most 131072 ids, got 1000000 of them"),
        (["a", "a"], "expected each id once, got 1 twice"),
        ([1, 2], "expected ids of at most 1024 characters, got 1"),
        (["x" * 10**6], "expected ids of at most 1024 characters, got 'xxxx"),
        ("a", "expected a list of clients' ids, got 'a'"),
        (0.5, "expected a list of clients' ids, got 0.5"),
    ],
)
def test_a_list_of_those_asked_is_bounded_where_it_is_read(kit, sampled, says):
    message = kit.message(masks())
    message.content["config"]["sampled"] = sampled
    exchange = MaskExchange(stratified=True)
    with pytest.raises(LightningFLError, match=says):
        FlowerBridge.from_message(message, kit.context(), exchange=exchange)


def test_what_a_client_does_not_read_may_be_anything(ask):
    assert ask(sampled=0.5, odd_thing=[1.0], other=b"x" * 1000).has_content()


def test_thousands_of_other_records_and_keys_are_passed_over(kit, source):
    config = {f"key-{i}": i for i in range(100_000)}
    message = kit.message(source)
    for i in range(2_000):
        message.content[f"more-{i}"] = MetricRecord({"x": 1.0})
        message.content[f"config-{i}"] = ConfigRecord({"y": 1})
    message.content["config"].update(config)
    assert FlowerBridge.from_message(message, kit.context()).server_round == 1


def test_no_or_several_array_records_are_named(kit, source):
    for content in ({}, {"a": to_record(source), "b": to_record(source)}):
        message = kit.message()
        message.content.update(content)
        with pytest.raises(LightningFLError, match="exactly one ArrayRecord"):
            FlowerBridge.from_message(message, kit.context())
