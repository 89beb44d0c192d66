"""No mutation of a reply crashes the round."""

import numpy as np
import pytest
from _altering import altering
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.server import Reason

scalars = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(), st.lists(st.floats(), max_size=3), st.just(10**5000)
)
mutations = st.one_of(
    st.tuples(st.just("metric"), st.sampled_from(["num-examples", "train_loss", "x"]), scalars),
    st.tuples(
        st.just("config"),
        st.sampled_from(["client-id", "server-round", "steps"]),
        st.one_of(st.text(max_size=5), st.binary(max_size=5), scalars),
    ),
    st.tuples(st.just("bytes"), st.integers(0, 200), st.binary(max_size=40)),
    st.tuples(st.just("dtype"), st.sampled_from(["float32", "object", "<M8[s]", "", "bfloat16"]), st.none()),
    st.tuples(st.just("shape"), st.lists(st.integers(-2, 2**40), max_size=3), st.none()),
    st.tuples(st.just("stype"), st.sampled_from(["lightning_fl_ext.raw", "?", "numpy.ndarray"]), st.none()),
    st.tuples(st.just("value"), st.floats(width=32), st.none()),
    st.tuples(st.just("drop"), st.sampled_from(["arrays", "metrics", "client"]), st.none()),
    st.tuples(st.just("add"), st.sampled_from([ArrayRecord(), MetricRecord(), ConfigRecord()]), st.none()),
)


def mutate(toy, reply, mutation):
    kind, where, what = mutation
    packed = reply.content["arrays"]["weight"] if "arrays" in reply.content else None
    if kind == "metric" and "metrics" in reply.content:
        reply.content["metrics"][where] = what
    elif kind == "config" and "client" in reply.content:
        reply.content["client"][where] = what
    elif kind == "drop" and where in reply.content:
        del reply.content[where]
    elif kind == "add":
        reply.content["more"] = where
    elif packed is not None and kind == "bytes":
        packed.data = packed.data[:where] + what + packed.data[where + len(what) :]
    elif packed is not None and kind in ("dtype", "stype"):
        setattr(packed, kind, where)
    elif packed is not None and kind == "shape":
        packed.shape = tuple(where)
    elif packed is not None and kind == "value" and packed.dtype == "float32" and len(packed.data) == 152:
        packed.data = packed.data[:128] + np.float32(where).tobytes() + packed.data[132:]
    return reply


@settings(max_examples=40)
@given(st.lists(mutations, min_size=1, max_size=3), st.sampled_from(["ExactFedAvg", "FedAvg"]))
def test_no_mutation_of_a_reply_crashes_the_round(toy, make_strategy_of, hostile, name):
    def alter(toy, reply):
        for mutation in hostile:
            mutate(toy, reply, mutation)
        return reply

    grid = toy.make_grid(3, faults=altering(toy, alter, "01"))
    result = toy.make_trainer(make_strategy_of(name), max_rounds=1).fit(toy.Net(), grid)
    (record,) = result.rounds
    assert {"00", "02"} <= {*record.accepted}
    left_out = {r.client_id for r in record.rejected if r.reason is not Reason.METRIC}
    assert ("01" in record.accepted) != ("01" in left_out)


@pytest.fixture(scope="module")
def make_strategy_of():
    from flwr.serverapp.strategy import FedAvg

    from lightning_fl_ext import ExactFedAvg

    return lambda name: {"ExactFedAvg": ExactFedAvg, "FedAvg": FedAvg}[name]()
