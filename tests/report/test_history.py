"""A run is read from its ledger alone, and what cannot be read is said."""

import json
from dataclasses import replace

import pytest

from lightning_fl_ext.report import read_history
from lightning_fl_ext.server import LedgerError
from lightning_fl_ext.server.durability.ledger import GENESIS, make_line
from lightning_fl_ext.server.record import RoundRecord


def test_what_was_written_is_read_back(tmp_path, write_ledger, records):
    history = read_history(write_ledger(tmp_path / "run", records))
    assert history.name == "run"
    assert history.problems == ()
    assert history.finished
    for read, written in zip(history.rounds, records, strict=True):
        # As text, since NaN is not equal to itself.
        assert sorted(map(str, read.metrics.items())) == sorted(map(str, written.metrics.items()))
        assert replace(read, metrics={}) == replace(written, metrics={})
    assert history.clients == ["a", "b", "c", "d"]
    assert history.contributions[2].keys() == {"a", "c", "d"}
    assert history.contributions[2]["a"].num_examples == 8
    assert history.fingerprint["seed"] == 3
    assert history.digest == records[-1].digest


def test_the_ledger_s_file_stands_for_its_folder(tmp_path, write_ledger, records):
    folder = write_ledger(tmp_path / "run", records)
    assert read_history(folder / "ledger.jsonl").name == "run"


def test_a_run_that_goes_on_is_not_finished(tmp_path, write_ledger, records):
    history = read_history(write_ledger(tmp_path, records[:2], finished=False))
    assert (len(history.rounds), history.finished) == (2, False)


def test_an_altered_line_is_a_problem_and_the_rest_is_read(tmp_path, write_ledger, records):
    path = write_ledger(tmp_path, records) / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"num_examples":8', b'"num_examples":9', 1)
    path.write_bytes(b"".join(lines))
    history = read_history(tmp_path)
    assert len(history.rounds) == 6
    assert "line 3 (entry 2) was altered" in history.problems[0]


@pytest.mark.parametrize(
    "content",
    [
        {"round": {"server_round": 1}, "accepted": [{}]},
        {"round": {}, "accepted": []},
        {"round": [], "accepted": []},
        {"round": {**RoundRecord(1).to_json(), "metrics": {"loss": "<b>low</b>"}}, "accepted": []},
        {"round": {**RoundRecord(1).to_json(), "sampled": [1]}, "accepted": []},
        {"round": {**RoundRecord(1).to_json(), "rejected": [{"reason": "no such"}]}, "accepted": []},
        {},
    ],
    ids=lambda content: json.dumps(content)[:60],
)
def test_a_line_that_holds_something_else_is_a_problem(tmp_path, content):
    head, start = make_line(GENESIS, 0, "start", {"fingerprint": {}})
    _, odd = make_line(head, 1, "round", content)
    (tmp_path / "ledger.jsonl").write_bytes(start + odd)
    history = read_history(tmp_path)
    assert history.rounds == ()
    assert history.problems == ("entry 1 does not hold what a ledger's entries hold",)


@pytest.mark.parametrize("content", [b"", b"no ledger\n", b"\x00\xff"])
def test_what_is_no_ledger_is_refused(tmp_path, content):
    (tmp_path / "ledger.jsonl").write_bytes(content)
    with pytest.raises(LedgerError, match="is no ledger"):
        read_history(tmp_path)


def test_there_must_be_a_ledger(tmp_path):
    with pytest.raises(LedgerError, match="there is no ledger"):
        read_history(tmp_path)
