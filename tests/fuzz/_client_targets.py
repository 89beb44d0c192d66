"""What a client decodes: a server's instructions, its own kept states, the files of a fit's processes."""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from _mutations import damage_bytes, damage_json, some_value
from _target import Target
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from safetensors.torch import save

from lightning_fl_ext import MaskExchange, WeightExchange
from lightning_fl_ext.client.algorithms.choice import algorithm_of
from lightning_fl_ext.client.bridge.held import read_held
from lightning_fl_ext.client.launcher.message_file import (
    read_message,
    read_reply,
    read_worker_failure,
    write_message,
    write_reply,
)
from lightning_fl_ext.client.messages import (
    read_counted,
    read_instruction,
    read_max_rounds,
    read_run_id,
    read_settings,
)
from lightning_fl_ext.client.persistence.held_file import held_on_disk
from lightning_fl_ext.client.persistence.saved_state import decode_files, encode_state
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.client.results.spool import read_result
from lightning_fl_ext.engines.private import ensure_identity
from lightning_fl_ext.files import arrays_to_bytes, tensors_to_bytes
from lightning_fl_ext.results import ClientUpdate, EpochResult
from lightning_fl_ext.wire import Held, RoundInfo, to_record, to_torch
from lightning_fl_ext.wire.algorithm_names import joined
from lightning_fl_ext.wire.codes import CountedRound
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, SIZE, TRIALS

# Kept states

DATA, TENSORS = encode_state(
    {
        "local": {"w": torch.ones(2, 3), "t": torch.ones(3, 4).T, "c": torch.tensor(1j)},
        "optimizers": [{"state": {0: {"step": 3, "dtype": torch.float16, "a": np.ones(2)}}}],
        "steps": (1, None, "a"),
    }
)
WHOSE = {"client_id": "a", "run_id": "r", "server_round": 3}
STATE = json.dumps(
    {
        "version": 1,
        "client_id": "a",
        "run_id": "r",
        "round": 3,
        "previous": 2,
        "model": {"w": "float32[2, 3]"},
        "state": DATA,
    }
).encode()
KEPT = {"state.json": STATE, "tensors.safetensors": tensors_to_bytes(TENSORS)}


def make_kept(rng):
    files = dict(KEPT)
    if rng.random() < 0.8:
        files["state.json"] = damage_json(files["state.json"], rng)
    else:
        name = rng.choice(sorted(files))
        files[name] = damage_bytes(files[name], rng)
    return files


# Files that a fit's processes leave for each other

WEIGHTS = {"w": torch.ones(2, 3), "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
SPOOLED = {
    EpochResult: {"num_examples": 5, "epoch": 0, "names": [*WEIGHTS], "metrics": {"loss": 0.5}},
    ClientUpdate: {
        "num_examples": 5,
        "client_id": "a",
        "server_round": 1,
        "examples_seen": 5,
        "steps": 1,
        "epochs": 1,
        "names": [*WEIGHTS],
        "metrics": {"loss": 0.5},
    },
}
FOLDER = tempfile.TemporaryDirectory()
FILE = Path(FOLDER.name) / "result.safetensors"


def make_spooled(rng):
    kind = rng.choice(list(SPOOLED))
    text = json.dumps(SPOOLED[kind]).encode()
    if rng.random() < 0.6:
        text = damage_json(text, rng)
        return kind, save(WEIGHTS, {"result": text.decode(errors="replace")})
    return kind, damage_bytes(save(WEIGHTS, {"result": text.decode()}), rng)


def read_spooled(given):
    kind, data = given
    FILE.write_bytes(data)
    result = read_result(FILE, kind)
    return {name: result.arrays[name] for name in result.arrays}, result.arrays.load()


# θ that a client has kept

EXCHANGE, MASKED = MaskExchange(), np.arange(8, dtype=np.uint8)
HELD_BEFORE = {COUNTS: MASKED % 4, TRIALS: np.array(3), MODEL: np.zeros(32, np.uint8)}
HELD_AFTER = {**HELD_BEFORE, COUNTS: MASKED % 3}
SUM = EXCHANGE.to_holder(HELD_AFTER, RoundInfo(7, 2), Held(HELD_BEFORE, CountedRound(1, ("a", "b", "c"))))
HELD_FILE = arrays_to_bytes(HELD_BEFORE)
ROOT = Path(FOLDER.name, "states")
STATES = StateFolder(ROOT, "a", "r")


def make_held(rng):
    if rng.random() < 0.5:
        return damage_bytes(HELD_FILE, rng)
    held = dict(HELD_BEFORE)
    name = rng.choice(list(held))
    kind = rng.choice((np.uint8, np.uint16, np.int64, np.float32, np.bool_))
    size = rng.choice(((), 1, 8, 7, (2, 4), 0))
    with np.errstate(invalid="ignore"):
        held[name] = np.full(size, rng.choice((0, 3, 4, 2**8, 2**16 + 3, -1, 0.5, np.inf))).astype(kind)
    if rng.random() < 0.2:
        del held[name]
    return arrays_to_bytes(held)


def read_held_file(data):
    """Read the next θ, which is the right one or none."""
    STATES.write_file("held.safetensors", data)
    message = SimpleNamespace(content=RecordDict({"config": ConfigRecord({"run-id": "r"})}))
    context = Context(1, 2, {"client-id": "a"}, RecordDict(), {})
    with held_on_disk(ROOT, message, context):
        theta = EXCHANGE.from_server(SUM, RoundInfo(7, 2, held=read_held(context)))
    assert (theta[COUNTS] == HELD_AFTER[COUNTS]).all()
    return theta


# Instructions

CONFIG = {
    "run-seed": 7,
    "run-id": "3fa9",
    "server-round": 1,
    "max-rounds": 5,
    "metric-states": True,
    "algorithm": "fedprox",
    "proximal-mu": 0.0,
    "feddyn-alpha": 0.1,
    "fedrep-head-epochs": 1,
    "sampled": ["a", "b"],
}
ALGORITHMS = ("fedavg", "fedprox", "scaffold", "fednova", "feddyn", "fedrep", "another")
PLAIN = to_record({"w": np.ones((2, 3), np.float32), "n": np.array(3)})
CODED = to_record({MASKS: np.zeros(40, np.uint8), SIZE: np.array(3), MODEL: np.zeros(32, np.uint8)}, [MASKS])
EXCHANGES = (WeightExchange(), MaskExchange(), MaskExchange(stratified=True))


def make_instruction(rng):
    exchange = rng.choice(EXCHANGES)
    record = dict(CODED if isinstance(exchange, MaskExchange) else PLAIN)
    config = dict(CONFIG, algorithm=rng.choice(ALGORITHMS))
    if rng.random() < 0.3:
        config.pop(rng.choice(list(CONFIG)))
    if rng.random() < 0.6:
        value = some_value(rng)
        if not isinstance(value, dict | None) and _is_plain(value):
            config[rng.choice([*CONFIG, "more"])] = value
    else:
        name = rng.choice(list(record))
        packed = record[name]
        fields = {f: getattr(packed, f) for f in ("dtype", "shape", "stype", "data")}
        field = rng.choice(("data", "data", "dtype", "shape"))
        changed = {
            "data": lambda: damage_bytes(packed.data, rng),
            "dtype": lambda: rng.choice(("float64", "O", "x" * 99, "uint8")),
            "shape": lambda: tuple(rng.choice((0, -1, 2, 2**40)) for _ in range(rng.choice((0, 1, 70)))),
        }[field]()
        record[name] = Array(**{**fields, field: changed})
    content = RecordDict({"arrays": ArrayRecord(record), "config": ConfigRecord(config)})
    return exchange, content


def _is_plain(value):
    """Whether a Flower record takes it."""
    values = value if isinstance(value, list) else [value]
    kinds = {type(v) for v in values}
    return len(kinds) <= 1 and kinds <= {int, float, str, bytes, bool}


def read_whole(given):
    exchange, content = given
    message = SimpleNamespace(content=content, metadata=SimpleNamespace(message_type="train"))
    context = SimpleNamespace(run_id=7)
    told = read_max_rounds(message), read_counted(message), algorithm_of(read_settings(message))
    return read_run_id(message, context), told, read_instruction(message, "a", exchange)


# What an algorithm's server half sends beside the weights

MODULE = torch.nn.Linear(3, 2)
NAMED = {name: parameter.detach().numpy() for name, parameter in MODULE.named_parameters()}
HALVES = {"scaffold": {}, "fednova": {}, "feddyn": {"feddyn-alpha": 0.1}, "fedprox": {"proximal-mu": 0.1}}


def make_algorithm_instruction(rng):
    record = dict(to_record(joined(NAMED, NAMED)))
    name = rng.choice(list(record))
    packed, kind = record[name], rng.randrange(5)
    fields = {f: getattr(packed, f) for f in ("dtype", "shape", "stype", "data")}
    if kind == 0:
        record[name] = Array(**{**fields, "data": damage_bytes(packed.data, rng)})
    elif kind == 1:
        record[name] = to_record({name: rng.choice((np.zeros(0), np.ones(6, int), np.full((2, 3), np.nan)))})[
            name
        ]
    elif kind == 2:
        record[rng.choice(("algorithm/", "algorithm/more", "\ud800", "../x"))] = record.pop(name)
    elif kind == 3:
        del record[name]
    half = rng.choice(list(HALVES))
    config = {"algorithm": half, "server-round": 1, "counted-round": 0, **HALVES[half]}
    value = some_value(rng)
    if rng.random() < 0.4 and not isinstance(value, dict | None) and _is_plain(value):
        config[rng.choice(list(config))] = value
    return RecordDict({"arrays": ArrayRecord(record), "config": ConfigRecord(config)})


def begin(content):
    """Read, and have the client's half begin with what it got."""
    message = SimpleNamespace(content=content, metadata=SimpleNamespace(message_type="train"))
    _, extras, _, _ = read_instruction(message, "a", WeightExchange())
    make = algorithm_of(read_settings(message))
    read_counted(message)
    received = {name: to_torch(array) for name, array in extras.items()}
    return make, received


# Messages to and from the processes of a client

CONTEXT = Context(1, 2, {"client-id": "a"}, RecordDict({"kept": ConfigRecord({"round": 3})}), {"seed": 7})


def launcher_files():
    ensure_identity()
    content = RecordDict(
        {
            "arrays": PLAIN,
            "config": ConfigRecord(CONFIG | {"key": b"abc"}),
            "metrics": MetricRecord({"a": 1.5}),
        }
    )
    made = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write_message(path, Message(content, 2, "train"), CONTEXT)
        made.append(path.read_bytes())
        write_reply(path, content, CONTEXT.state)
        made.append(path.read_bytes())
    return made


MESSAGES = launcher_files()
ERROR = json.dumps({"rank": 1, "world_size": "2", "time": 3.5, "traceback": "ValueError: no"}).encode()


def make_launcher_file(rng):
    kind = rng.randrange(3)
    if kind == 2:
        return kind, damage_json(ERROR, rng)
    data = MESSAGES[kind]
    if rng.random() < 0.4:
        return kind, damage_bytes(data, rng, MESSAGES)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    about = header["__metadata__"]
    part = rng.choice(("contents", "told"))
    about[part] = damage_json(about[part].encode(), rng).decode(errors="replace")
    text = json.dumps(header).encode()
    return kind, len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_launcher_file(given):
    kind, data = given
    FILE.write_bytes(data)
    return (read_message, read_reply, read_worker_failure)[kind](FILE)


CLIENT_TARGETS = {
    "held θ": Target(make_held, read_held_file),
    "kept states": Target(make_kept, lambda files: decode_files(files, Path("kept"), **WHOSE)),
    "spool files": Target(make_spooled, read_spooled),
    "instructions": Target(make_instruction, read_whole),
    "algorithm instructions": Target(make_algorithm_instruction, begin),
    "launcher messages": Target(make_launcher_file, read_launcher_file),
}
