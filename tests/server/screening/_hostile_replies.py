"""Replies that one client may send to a train, evaluate or test message, and what is said of each."""

import numpy as np
from _hostile import metrics, record, renamed, states_of
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar
from lightning_fl_ext.server import Reason

BAD = "02"
EMPTY = Array("float32", (0,), "numpy.ndarray", b"")
HUGE = 10**5000
NAMES = {
    "half a character": "\ud800",
    "not UTF-8 in a file": "\udcff",
    "a line of its own": "loss\nround 9 accepted",
    "a mark that turns text round": "\u202eloss",
    "a control": "\x1b[2Jloss",
    "an end": "loss\0",
    "a megabyte": "n" * 2**20,
}


def whole(content):
    """Send a content of its own."""

    def alter(toy, reply):
        kept = reply.content
        for name in list(kept):
            del kept[name]
        for name, value in content.items():
            kept[name] = value
        return reply

    return alter


def without(name):
    def alter(toy, reply):
        reply.content.pop(name, None)
        return reply

    return alter


def without_count(toy, reply):
    reply.content["metrics"] = MetricRecord({"train_loss": 0.5})
    return reply


def twice(name):
    def alter(toy, reply):
        if name in reply.content:
            reply.content[f"{name}-2"] = reply.content[name]
        return reply

    return alter


def arrays(change):
    """Change the named arrays of a train reply."""

    def alter(toy, reply):
        return toy.replace_arrays(reply, change) if "arrays" in reply.content else reply

    return alter


def packed(**fields):
    """Have an array say something else of itself."""

    def alter(toy, reply):
        if "arrays" in reply.content:
            for name, value in fields.items():
                setattr(reply.content["arrays"]["weight"], name, value)
        return reply

    return alter


def client(**more):
    def alter(toy, reply):
        reply.content["client"] = ConfigRecord({**reply.content["client"], **more})
        return reply

    return alter


def each(change):
    return arrays(lambda named: {name: change(array) for name, array in named.items()})


def one(value):
    def change(named):
        named["weight"].flat[0] = value

    return arrays(change)


def alternating(named):
    largest = np.finfo(np.float32).max
    named["weight"].flat[:] = np.resize([largest, -largest], named["weight"].size)


# By name: the alteration, and the reason at training and at evaluating. None: the reply counts.

BROKEN = {
    "nothing": (whole({}), Reason.UNDECODABLE, Reason.UNDECODABLE),
    "config records alone": (whole({"metrics": ConfigRecord({"loss": 1.0})}), *2 * [Reason.UNDECODABLE]),
    "metrics where arrays should be": (
        record("arrays", MetricRecord({"num-examples": 5})),
        *2 * [Reason.UNDECODABLE],
    ),
    "config where metrics should be": (record("metrics", ConfigRecord({"a": 1})), *2 * [Reason.UNDECODABLE]),
    "config where arrays should be": (record("arrays", ConfigRecord({"a": 1})), *2 * [Reason.UNDECODABLE]),
    "metrics where the client should be": (
        record("client", MetricRecord({"client-id": 2.0})),
        *2 * [Reason.UNDECODABLE],
    ),
    "no metrics": (without("metrics"), *2 * [Reason.UNDECODABLE]),
    "metrics twice": (twice("metrics"), *2 * [Reason.UNDECODABLE]),
    "no arrays": (without("arrays"), Reason.UNDECODABLE, None),
    "arrays twice": (twice("arrays"), Reason.UNDECODABLE, None),
    "a hundred records": (
        lambda toy, reply: [reply.content.update({f"r{i}": ConfigRecord()}) for i in range(99)] and reply,
        *2 * [Reason.OVER_LIMIT],
    ),
}
COUNTS = {
    "no count": (without_count, *2 * [Reason.COUNT]),
    "a negative count": (metrics(**{"num-examples": -5}), *2 * [Reason.COUNT]),
    "half an example": (metrics(**{"num-examples": 1.5}), *2 * [Reason.COUNT]),
    "2^53 examples": (metrics(**{"num-examples": 2**53}), *2 * [Reason.COUNT]),
    "2^26 + 1 examples": (metrics(**{"num-examples": 2**26 + 1}), *2 * [Reason.COUNT]),
    "more examples than a float": (metrics(**{"num-examples": HUGE}), *2 * [Reason.MAGNITUDE]),
    "NaN examples": (metrics(**{"num-examples": float("nan")}), *2 * [Reason.COUNT]),
    "infinite examples": (metrics(**{"num-examples": float("inf")}), *2 * [Reason.COUNT]),
    "a list of counts": (metrics(**{"num-examples": [5, 5]}), *2 * [Reason.COUNT]),
    "no examples": (metrics(**{"num-examples": 0}), *2 * [Reason.IDLE]),
    "none of no examples": (metrics(**{"num-examples": -0.0}), *2 * [Reason.IDLE]),
}
NUMBERS = {
    "the largest float": (metrics(train_loss=1.7e308, val_loss=1.7e308), *2 * [Reason.MAGNITUDE]),
    "the least float": (metrics(train_loss=-1.7e308, val_loss=-1.7e308), *2 * [Reason.MAGNITUDE]),
    "a number of both signs": (
        metrics(train_loss=[1.7e308, -1.7e308], val_loss=[1.7e308, -1.7e308]),
        *2 * [Reason.MAGNITUDE],
    ),
    "a whole number no float holds": (metrics(train_loss=-HUGE, val_loss=HUGE), *2 * [Reason.MAGNITUDE]),
    "NaN": (metrics(train_loss=float("nan"), val_loss=float("nan")), *2 * [Reason.NOT_FINITE]),
    "infinity": (metrics(train_loss=float("-inf"), val_loss=float("inf")), *2 * [Reason.NOT_FINITE]),
    "a hundred thousand numbers": (metrics(train_loss=[0.5] * 10**5), *2 * [Reason.OVER_LIMIT]),
    "five thousand names": (metrics(**{f"m{i}": 1.0 for i in range(5000)}), *2 * [Reason.OVER_LIMIT]),
    "a text of a megabyte": (client(more="x" * 2**20), *2 * [Reason.OVER_LIMIT]),
    "a config number of 70 bits": (client(more=2**70), *2 * [Reason.MAGNITUDE]),
    "a round of 70 bits": (client(**{"server-round": 2**70}), *2 * [Reason.MAGNITUDE]),
    "another round": (client(**{"server-round": 77}), *2 * [Reason.STALE]),
    "a round that is a text": (client(**{"server-round": "1"}), *2 * [Reason.STALE]),
    "another client": (client(**{"client-id": "00"}), *2 * [Reason.NOT_SAMPLED]),
    "a number for a name": (client(**{"client-id": 2.5}), *2 * [Reason.NOT_SAMPLED]),
}
ODD_NAMES = {
    **{
        f"{kind} in a metric's name": (metrics(**{name: 1.0}), *2 * [Reason.NAME])
        for kind, name in NAMES.items()
    },
    **{
        f"{kind} in a record's name": (record(name, ConfigRecord()), *2 * [Reason.NAME])
        for kind, name in NAMES.items()
    },
    **{
        f"{kind} in its own name": (client(**{"client-id": name}), *2 * [Reason.NAME])
        for kind, name in NAMES.items()
        if kind != "a megabyte"
    },
    "a megabyte in its own name": (client(**{"client-id": "n" * 2**20}), *2 * [Reason.OVER_LIMIT]),
}
ARRAYS = {
    "an array named half": (
        record("arrays", ArrayRecord({"weight": EMPTY, "\ud800": EMPTY})),
        *2 * [Reason.NAME],
    ),
    "empty arrays": (
        arrays(lambda named: {n: np.zeros(0, a.dtype) for n, a in named.items()}),
        Reason.SHAPE,
        None,
    ),
    "no array": (arrays(lambda named: {}), Reason.KEYS, None),
    "one array less": (arrays(lambda named: {"weight": named["weight"]}), Reason.KEYS, None),
    "arrays of axes that broadcast": (each(lambda a: a[None]), Reason.SHAPE, None),
    "another dtype": (
        arrays(lambda named: {n: a.astype("f8") for n, a in named.items()}),
        Reason.DTYPE,
        None,
    ),
    "complex numbers": (
        arrays(lambda named: {n: a.astype("c8") for n, a in named.items()}),
        Reason.DTYPE,
        None,
    ),
    "whole numbers": (
        arrays(lambda named: {n: a.astype("i8") for n, a in named.items()}),
        Reason.DTYPE,
        None,
    ),
    "a NaN": (one(np.nan), Reason.NOT_FINITE, None),
    "an infinity": (one(-np.inf), Reason.NOT_FINITE, None),
    "the largest weights": (each(lambda a: np.full_like(a, np.finfo("f4").max)), Reason.MAGNITUDE, None),
    "the largest weights of both signs": (arrays(alternating), Reason.MAGNITUDE, None),
    "a pickle": (packed(data=b"\x80\x04cposix\nsystem\n", stype="pickle"), Reason.UNDECODABLE, None),
    "objects": (packed(dtype="object"), Reason.DTYPE, None),
    "bytes that end early": (packed(data=b"\x93NUMPY\x01\x00"), Reason.UNDECODABLE, None),
    "a header of gigabytes": (packed(data=b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"), Reason.UNDECODABLE, None),
    "a huge axis": (packed(shape=(2**70,)), Reason.UNDECODABLE, None),
    "a negative axis": (packed(shape=(-2, -3)), Reason.UNDECODABLE, None),
    "two million bytes": (packed(data=b"x" * 2**21), Reason.TOO_LARGE, None),
}
LEFT_OUT = BROKEN | COUNTS | NUMBERS | ODD_NAMES | ARRAYS

# Of these replies the update, or the evaluation, counts: what is odd in them alone is left out.

COUNTS_ALL_THE_SAME = {
    "nothing odd": lambda toy, reply: reply,
    "exchanged names of records": renamed(arrays="metrics", metrics="arrays"),
    "the server's names": metrics(
        server_accuracy=1.0, clients_accepted=99.0, bytes_up=0.0, **{"val_loss/worst": -9.0}
    ),
    "names of its own": metrics(**{f"own{i}": 1.0 for i in range(500)}),
    "a list for a number": metrics(train_loss=[0.1, 0.2], val_loss=[0.1]),
    "no metrics but the count": lambda toy, reply: metrics()(toy, _count_alone(reply)),
    "states that are none": record(METRIC_STATES, ConfigRecord({"train": b"x" * 99, "validate": "y"})),
    "states of another kind": record(METRIC_STATES, MetricRecord({"a": 1.0})),
    "states as arrays": record(METRIC_STATES, ArrayRecord({"train": EMPTY})),
    "states of a stage that is none": record(METRIC_STATES, ConfigRecord({"predict": b"", "test": [1, 2]})),
    "a validation of the loss of training": record(
        METRIC_STATES, states_of({"train_loss": Scalar("mean", 3)}, 3)
    ),
    "states of more examples": record(METRIC_STATES, states_of({"loss": Scalar("mean", 2**27)}, 2**27)),
    "states over other names": record(METRIC_STATES, states_of({"\ud800": Scalar("mean", 1)}, 1)),
    "steps that are none": client(steps=-5, epochs="many", **{"examples-seen": [1]}),
}


def _count_alone(reply):
    count = reply.content["metrics"]["num-examples"]
    reply.content["metrics"] = MetricRecord({"num-examples": count})
    return reply


SENT = {**{name: case[0] for name, case in LEFT_OUT.items()}, **COUNTS_ALL_THE_SAME}
