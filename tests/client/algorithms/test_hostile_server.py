"""A hostile server gets one clear error from clients, who lose nothing and write nowhere else."""

import numpy as np
import pytest
from _quadratic import Quadratic, app

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.wire import from_record, to_record

WEIGHTS = {name: tensor.numpy().copy() for name, tensor in Quadratic().state_dict().items()}
ALPHA = {"feddyn-alpha": 0.1}


def controls(**changed):
    arrays = {"head": np.zeros(2), "tail": np.zeros(1)} | changed
    return {f"algorithm/{name}": array for name, array in arrays.items() if array is not None}


CASES = {
    "none": ("scaffold", {}, {}, "are for 0 parameters, and 2 travel here"),
    "one missing": ("scaffold", controls(tail=None), {}, "`tail` is missing, expected float64\\[1\\]"),
    "one too many": ("scaffold", controls(x=np.zeros(3)), {}, "`x` is float64\\[3\\], expected missing"),
    "a shape": (
        "scaffold",
        controls(head=np.zeros((2, 9))),
        {},
        "`head` is float64\\[2, 9\\], expected",
    ),
    "one to broadcast": ("scaffold", controls(head=np.zeros(1)), {}, "`head` is float64\\[1\\], expected"),
    "whole numbers": ("scaffold", controls(head=np.zeros(2, int)), {}, "`head` is int64\\[2\\], expected"),
    "complex numbers": ("scaffold", controls(head=np.zeros(2, complex)), {}, "`head` is complex128\\[2\\]"),
    "nan": (
        "scaffold",
        controls(head=np.full(2, np.nan)),
        {},
        "`algorithm/head`, for `scaffold`: expected",
    ),
    "endless": (
        "scaffold",
        controls(tail=np.full(1, np.inf)),
        {},
        "`algorithm/tail`, for `scaffold`",
    ),
    "for plain training": (
        "fedavg",
        controls(),
        {},
        "sends `algorithm/head` beside the weights",
    ),
    "for nobody": (None, controls(), {}, "`algorithm` names no half that takes it"),
    "no strength": ("feddyn", {}, {}, "`feddyn-alpha`: expected a finite number of at least 0, got None"),
    "a strength that is none": ("feddyn", {}, {"feddyn-alpha": float("nan")}, "`feddyn-alpha`: expected"),
    "a list of strengths": (
        "feddyn",
        {},
        {"feddyn-alpha": [0.1]},
        "expected .*, got \\[0.1\\]",
    ),
    "a round that never was": (
        "feddyn",
        {},
        {**ALPHA, "counted-round": 7},
        "state of `feddyn` after round 7",
    ),
    "a round below 0": (
        "feddyn",
        {},
        {**ALPHA, "counted-round": -1},
        "`counted-round`: expected a whole",
    ),
    "no round": ("scaffold", controls(), {"server-round": 0}, "config must hold `server-round`"),
    "no round for terms": ("feddyn", {}, {**ALPHA, "server-round": 0}, "and needs to know the round"),
    "no round for own models": ("ditto", {}, {"ditto-lambda": 0.1, "server-round": 0}, "`ditto`, which the"),
    "a round in words": ("scaffold", controls(), {"counted-round": "x"}, "`counted-round`: expected a whole"),
    "a name that leads elsewhere": ("../../x", {}, {}, "this client knows fedavg, .*, got `../../x`"),
}


def ask(kit, client, algorithm, arrays, config, server_round):
    message = kit.message(to_record({**WEIGHTS, **arrays}), server_round=server_round)
    config = {**config, **({} if algorithm is None else {"algorithm": algorithm})}
    for key, value in config.items():
        message.content["config"][key] = value
    return client(message, kit.context(0, of=3))


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_one_error_says_what_came_and_what_is_kept_stays(kit, tmp_path, case):
    algorithm, arrays, config, says = CASES[case]
    client = app(keep_local=tmp_path / "states")
    good = ("scaffold", controls(), {}) if algorithm != "feddyn" else ("feddyn", {}, ALPHA)
    first = from_record(ask(kit, client, *good, server_round=1).content["arrays"])
    before = files(tmp_path)
    with pytest.raises(LightningFLError, match=says) as refused:
        ask(kit, client, algorithm, arrays, config, server_round=2)
    assert len(str(refused.value)) < 600
    assert files(tmp_path) == before
    assert {path.split("/")[0] for path in before} == {"states"}
    again = from_record(ask(kit, client, *good, server_round=1).content["arrays"])  # the round once more
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
