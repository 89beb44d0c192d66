"""Everything that is decoded, and how damaged input for it is made."""

import hashlib
import json

import numpy as np
import torch
from _client_targets import CLIENT_TARGETS
from _mutations import SMALL, damage_bytes, damage_json, some_value
from _reply_targets import REPLY_TARGETS
from _secure_targets import SECURE_TARGETS
from _target import Target
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam
from safetensors.numpy import save
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_fl_ext import Limits
from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.failures import read_failure
from lightning_fl_ext.files import arrays_to_bytes, read_manifest, tensors_from_bytes, tensors_to_bytes
from lightning_fl_ext.metrics import MetricPack, pack_metrics
from lightning_fl_ext.metrics.stage_metrics import Scalar, StageMetrics
from lightning_fl_ext.results import ClientUpdate, digest
from lightning_fl_ext.server.durability.checkpoint import decode_checkpoint
from lightning_fl_ext.server.durability.ledger import GENESIS, LedgerError, check_lines, make_line
from lightning_fl_ext.server.durability.strategy_state import encode_strategy
from lightning_fl_ext.server.metrics.aggregation import aggregate_metrics
from lightning_fl_ext.server.metrics.pooling import read_stages
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.checks import ValueLimits, screen_train_reply
from lightning_fl_ext.server.screening.content import screen_size
from lightning_fl_ext.server.screening.limits import ExpectedContent
from lightning_fl_ext.server.screening.rejection import Reason, Rejected, Rejection
from lightning_fl_ext.server.screening.values import screen_name
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.client_record import declared_id
from lightning_fl_ext.wire.codes import (
    MASK_CODES,
    CountedRound,
    MaskKey,
    decode_change,
    decode_mask,
    decode_theta,
    encode_counts_change,
    encode_mask,
    encode_relay,
    encode_same,
    encode_sum_change,
    encode_theta,
    to_fixed_point,
)

# Arrays

ARRAYS = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "n": np.array(3),
    "b": np.array([True, False]),
    "e": np.ones(3, dtype="float16"),
}


DTYPES = ("float32", "bool", "O", "<U3", "bfloat16", "float8_e5m2", "V4", "", "x" * 99)


def damaged_array(packed, rng):
    fields = {name: getattr(packed, name) for name in ("dtype", "shape", "stype", "data")}
    which = rng.choice(("dtype", "shape", "stype", "data", "data", "data", "all"))
    if which in ("data", "all"):
        fields["data"] = damage_bytes(fields["data"], rng)
    if which in ("shape", "all"):
        sizes = (0, 1, 2, 3, 6, -1, 2**31, 2**62, 2**70)
        fields["shape"] = tuple(rng.choice(sizes) for _ in range(rng.choice((0, 1, 2, 3, 40, 70))))
    if which in ("dtype", "all"):
        fields["dtype"] = rng.choice(
            ("float32", "bool", "O", "<U3", "bfloat16", "float8_e5m2", "V4", "", "x" * 99)
        )
    if which in ("stype", "all"):
        fields["stype"] = rng.choice(("numpy.ndarray", "lightning_fl_ext.raw", "", "zip"))
    return Array(**fields)


def make_record(rng):
    record = dict(to_record(ARRAYS, ("b",) if rng.random() < 0.5 else ()))
    name = rng.choice(list(record))
    record[name] = damaged_array(record[name], rng)
    return ArrayRecord(record)


# Whole replies

LIKE = {name: ARRAYS[name] for name in ("w", "n")}
MODULE = torch.nn.ModuleDict(
    {
        "val": MetricCollection({"loss": MeanMetric(), "matrix": MulticlassConfusionMatrix(3)}),
        "rows": CatMetric(),
    }
)
EXPECTED = ExpectedContent.of(LIKE, MODULE)
VALUES = ValueLimits(max_update_norm=9.0, max_term=2.0**40)


def flower_value(rng):
    value = rng.choice(SMALL) if rng.random() < 0.8 else [rng.choice((0.5, 1e300, float("inf")))] * 5
    return value if isinstance(value, int | float | str | list) else b"x" * rng.choice((0, 9, 9000))


def make_reply(rng):
    numbers = {"loss": 0.5, "num-examples": 3}
    client = {"client-id": "a", "server-round": 1, "steps": 3}
    content = {
        "arrays": to_record(LIKE),
        "metrics": MetricRecord(numbers),
        "client": ConfigRecord(client),
    }
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, name = rng.randrange(5), rng.choice((*content, "more", str(rng.choice(SMALL))[:400]))
        value = flower_value(rng)
        if kind == 0:
            content[name] = make_record(rng)
        elif kind == 1 and isinstance(value, int | float | list) and not isinstance(value, bool):
            key = rng.choice((*numbers, str(rng.choice(SMALL))[:400]))
            content["metrics"] = MetricRecord({**numbers, key: value})
        elif kind == 2:
            key = rng.choice((*client, str(rng.choice(SMALL))[:400]))
            content["client"] = ConfigRecord({**client, key: value})
        elif kind == 3:
            content.pop(name, None)
        else:
            names = list(content)
            content = dict(zip(rng.sample(names, len(names)), content.values(), strict=True))
    return RecordDict(content)


class Reply:
    def __init__(self, content):
        self.content = content


def read_reply(content):
    screen_size(content, Limits(), EXPECTED)
    screen_name(declared_id(content), 256)
    return screen_train_reply(
        Reply(content), "a", 1, ValueLimits(max_update_norm=9.0, max_term=2.0**40), LIKE
    )


# Metric states


def fed_module():
    module = torch.nn.ModuleDict({"val": MetricCollection([]), "rows": CatMetric()})
    module["val"] = MetricCollection({"loss": MeanMetric(), "matrix": MulticlassConfusionMatrix(3)})
    module["val"]["loss"].update(torch.tensor([1.0, 2.0]))
    module["val"]["matrix"].update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    module["rows"].update(torch.tensor([1.0, 2.0]))
    module["rows"].update(torch.tensor([3.0]))
    return module


PACK = pack_metrics(fed_module(), num_examples=3, allow_example_states=("rows",))
STAGE = StageMetrics(
    PACK,
    {"val_loss": ("val.loss",), "val_rows": ("rows",)},
    {"val_loss": Scalar("mean", 3), "l": Scalar("sum", 3)},
)
STAGE_BYTES = STAGE.to_bytes()
PACK_ARRAYS, PACK_HEADER = PACK.to_arrays()


def make_stage(rng):
    kind = rng.random()
    if kind < 0.3:
        return damage_bytes(STAGE_BYTES, rng, (STAGE_BYTES,))
    header = damage_json(PACK_HEADER.encode(), rng).decode(errors="replace") if kind < 0.7 else PACK_HEADER
    about = {"pack": header, "names": dict(STAGE.names), "scalars": dict(STAGE.scalars)}
    text = json.dumps(about).encode()
    text = damage_json(text, rng) if kind > 0.6 else text
    return save({"header": np.frombuffer(text, dtype=np.uint8), **PACK_ARRAYS})


def read_and_pool(data):
    """Read, and pool with what two honest clients sent, whose numbers must come out."""
    told = {"bad": read_stages({"validate": data}, "bad", "bad")}
    for client in ("good", "other"):
        told[client] = read_stages({"validate": STAGE_BYTES}, client, client)
    updates = {c: ClientUpdate({}, 3, client_id=c, metrics={"val_loss": 1.5, "l": 1.0}) for c in sorted(told)}
    metrics, _ = aggregate_metrics(updates, told, MODULE, None, None, 1)
    assert np.isfinite(metrics["val_loss"]), metrics
    assert set(metrics) <= {"val_loss", "val_rows", "l", "val.loss", "rows"}, metrics
    return metrics


ODD_ARRAYS = (np.zeros(0), np.zeros((2, 2)), np.array("x"), np.array(None), np.zeros(3, "c8"), None)


def make_header(rng):
    arrays = dict(PACK_ARRAYS)
    if rng.random() < 0.3:
        name = rng.choice(list(arrays))
        arrays[name] = rng.choice(
            (np.zeros(0), np.zeros((2, 2)), np.array("x"), np.array(None), np.zeros(3, "c8"))
        )
    return arrays, damage_json(PACK_HEADER.encode(), rng).decode(errors="replace")


# Codes

SIZE = 600
PUBLIC = ThetaCounts(np.random.default_rng(0).integers(1, 10, SIZE).astype(np.uint16), 10)
KEY, DOWN = MaskKey(7, 1, "3fa9", "a"), MaskKey(7, 1, "3fa9")
THETA = to_fixed_point(np.clip(PUBLIC.probabilities() + 0.05, 0.01, 0.99))
MASKS = [encode_mask(THETA, PUBLIC.fixed_point(), KEY, code) for code in MASK_CODES]
DOWNS = [encode_theta(PUBLIC, DOWN)]
COUNTED = CountedRound(1, ("a", "b", "c"))
WRITTEN = [encode_mask(THETA, PUBLIC.fixed_point(), key) for key in COUNTED.keys(DOWN)]
OPENED = [
    decode_mask(mask, PUBLIC.fixed_point(), key)
    for mask, key in zip(WRITTEN, COUNTED.keys(DOWN), strict=True)
]
SUM = ThetaCounts(np.sum(OPENED, axis=0, dtype=np.uint16), 3)
CHANGES = [
    encode_same(PUBLIC, DOWN),
    encode_sum_change(SUM, PUBLIC, COUNTED, DOWN),
    encode_counts_change(SUM, PUBLIC, DOWN),
    encode_relay(SUM, PUBLIC, COUNTED, WRITTEN, DOWN),
]
HEADER_BYTES = 28


def make_payload(seeds):
    def make(rng):
        seed = rng.choice(seeds)
        if rng.random() < 0.2:
            return damage_bytes(seed, rng, seeds)
        body = damage_bytes(seed[HEADER_BYTES:], rng, seeds)  # the header fits it, so that it is decoded
        size = len(body).to_bytes(4, "little")
        return seed[:4] + size + seed[8:HEADER_BYTES] + body

    return make


# Files

STRATEGY, TENSORS = encode_strategy(FedAdam())
RECORD = RoundRecord(
    1, ("a",), ("a",), (Rejection("b", 1, Reason.NORM),), "0" * 64, {"loss": 1.0, "f1": float("nan")}
)
STATE = json.dumps(
    {
        "version": 3,
        "run_id": "r",
        "round": 1,
        "fingerprint": {"seed": 7},
        "digest": digest(ARRAYS),
        "strategy": STRATEGY,
        "rounds": [RECORD.to_json()],
        "callbacks": {"RoundLedger": {"head": "0" * 64, "index": 2}},
    }
).encode()
FILES = {
    "model.safetensors": arrays_to_bytes(ARRAYS),
    "strategy.safetensors": tensors_to_bytes({"t": torch.ones(2), "c": torch.ones(2, dtype=torch.complex64)}),
    "state.json": STATE,
}
MANIFEST = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}).encode()


def make_files(rng):
    files = dict(FILES)
    name = rng.choice(("state.json", "state.json", *files))
    files[name] = damage_json(files[name], rng) if name == "state.json" else damage_bytes(files[name], rng)
    if rng.random() < 0.02:
        del files[name]
    return files


def ledger():
    lines, head = [], GENESIS
    for index, event in enumerate(("start", "round", "round", "end")):
        head, line = make_line(head, index, event, {"round": RECORD.to_json(), "accepted": []})
        lines.append(line)
    return lines


LINES = ledger()


def make_ledger(rng):
    if rng.random() < 0.5:
        return damage_bytes(b"".join(LINES), rng, LINES)
    lines = list(LINES)
    at = rng.randrange(len(lines))
    body = (
        json.loads(damage_json(lines[at], rng) if rng.random() < 0.7 else lines[at])
        if rng.random() < 0.9
        else 3
    )
    if isinstance(body, dict):  # a chain of somebody's own, whose hashes are right
        body.pop("hash", None)
        index = some_value(rng) if rng.random() < 0.3 else body.pop("index", at)
        head = str(body.pop("previous", GENESIS))
        content = {k: v for k, v in body.items() if k not in ("index", "event", "previous")}
        lines[at] = make_line(head, index, body.get("event"), content)[1]
    return b"".join(lines)


def read_ledger(data):
    lines, problems = check_lines(data)
    if problems:
        raise LedgerError("; ".join(problems))
    return lines


def safe_ledger(rng):
    try:
        return make_ledger(rng)
    except (ValueError, RecursionError, UnicodeError):  # not JSON, or JSON that cannot be written
        return damage_bytes(b"".join(LINES), rng, LINES)


# Errors

TRACEBACKS = (
    b'Traceback:\n  File "/home/a/fit.py", line 7, in f\n    x()\nValueError: one\n  two',
    b"<class 'ValueError'>:<'one (ValueError at fit.py:7; client `site-a`)'>",
    b"code 7",
)
ODD_WORDS = ("9" * 5000, "`", "(", ":7", "\n", '\n  File "a", line ', "x" * 3000)


def make_failure(rng):
    text = damage_bytes(rng.choice(TRACEBACKS), rng, TRACEBACKS).decode(errors="surrogateescape")
    for _ in range(rng.choice((0, 1, 3))):
        at = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(("9" * 5000, "`", "(", ":7", "\n", '\n  File "a", line ', "x" * 3000))
            + text[at:]
        )
    return text


TARGETS = {
    "arrays": Target(make_record, from_record),
    "replies": Target(make_reply, read_reply, (Rejected,)),
    "metric states": Target(make_stage, lambda data: StageMetrics.from_bytes(data, client_id="a")),
    "pooling": Target(make_stage, read_and_pool, (Rejected,)),
    "metric packs": Target(make_header, lambda given: MetricPack.from_arrays(*given)),
    "masks": Target(make_payload(MASKS), lambda data: decode_mask(data, PUBLIC.fixed_point(), KEY)),
    "theta": Target(make_payload(DOWNS), lambda data: decode_theta(data, SIZE, DOWN)),
    "changes": Target(make_payload(CHANGES), lambda data: decode_change(data, PUBLIC, DOWN)),
    "tensors": Target(lambda rng: damage_bytes(FILES["strategy.safetensors"], rng), tensors_from_bytes),
    "checkpoints": Target(make_files, decode_checkpoint),
    "manifests": Target(lambda rng: damage_json(MANIFEST, rng), read_manifest, (ValueError,)),
    "ledgers": Target(safe_ledger, read_ledger, (LedgerError,)),
    "failures": Target(make_failure, lambda text: str(read_failure(text)), ()),
    **CLIENT_TARGETS,
    **REPLY_TARGETS,
    **SECURE_TARGETS,
}
INPUTS_AT_ONCE = {
    "pooling": 5,
    "checkpoints": 40,
    "masks": 100,
    "changes": 100,
    "replies": 100,
    "spool files": 50,
}
"""Inputs of a target in each turn; 200 of those that are not named."""
