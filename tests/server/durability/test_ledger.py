"""The chain of lines: every change to it is found, and located."""

import json
import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext import ExactFedAvg, RoundCheckpoint, RoundLedger, replay_ledger, verify_ledger
from lightning_fl_ext.files import (
    TornFilesError,
    arrays_from_bytes,
    arrays_to_bytes,
    read_folder,
    write_folder,
)
from lightning_fl_ext.server import CallbackError, LedgerError, RoundRecord
from lightning_fl_ext.server.durability.ledger import check_lines, make_line


def fit(toy, folder, callbacks=None, ckpt_path=None, faults=None, **options):
    callbacks = [RoundLedger(keep_updates=True), RoundCheckpoint()] if callbacks is None else callbacks
    options = {"max_rounds": 4, **options}
    trainer = toy.make_trainer(callbacks=callbacks, default_root_dir=folder, **options)
    grid = toy.make_grid(3, faults=faults)
    return trainer.fit(toy.Net(buffers=True), grid, ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A finished run's folder and result; copy it before changing it."""
    folder = tmp_path_factory.mktemp("run")
    return folder, fit(toy, folder)


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "run")


def test_a_whole_ledger_has_no_problems(run):
    folder, result = run
    report = verify_ledger(folder)
    assert report.ok
    assert (report.rounds, report.finished) == (4, True)
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_bytes().splitlines()]
    assert report.head == lines[-1]["hash"]
    assert [line["event"] for line in lines] == ["start", "round", "round", "round", "round", "end"]
    assert [line["round"]["digest"] for line in lines[1:-1]] == [record.digest for record in result.rounds]
    assert lines[-1]["digest"] == result.digest


def test_a_round_s_line_names_who_counted_and_who_did_not(toy, tmp_path):
    def nan(instruction, reply):
        if toy.is_train(instruction) and toy.client_of(reply) == "01":
            return toy.replace_arrays(reply, lambda named: {**named, "bias": named["bias"] * float("nan")})
        return reply

    fit(toy, tmp_path, faults=nan, max_rounds=1)
    line = json.loads((tmp_path / "ledger.jsonl").read_bytes().splitlines()[1])
    assert [(entry["client_id"], entry["num_examples"]) for entry in line["accepted"]] == [
        ("00", 10),
        ("02", 24),
    ]
    assert [len(entry["digest"]) for entry in line["accepted"]] == [64, 64]
    (rejected,) = line["round"]["rejected"]
    assert (rejected["client_id"], rejected["reason"], rejected["key"]) == ("01", "not-finite", "bias")


def test_a_metric_that_is_no_number_is_kept_in_strict_json(toy, tmp_path):
    values = {"loss": float("nan"), "gap": float("-inf"), "accuracy": 0.5}
    trainer = toy.make_trainer(callbacks=[RoundLedger()], default_root_dir=tmp_path, max_rounds=1)
    trainer.fit(toy.Net(), toy.make_grid(3), evaluate=lambda model: values)
    assert verify_ledger(tmp_path).ok

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads((tmp_path / "ledger.jsonl").read_bytes().splitlines()[1], parse_constant=refuse)
    metrics = RoundRecord.from_json(line["round"]).metrics
    assert math.isnan(metrics.pop("server_loss"))
    assert (metrics["server_gap"], metrics["server_accuracy"]) == (-math.inf, 0.5)
    assert metrics["bytes_up"] == trainer.rounds[-1].metrics["bytes_up"]


def hashed_anew(lines):
    """Alter a line and give it the hash that fits, as whoever falsifies a ledger would."""
    body = {key: value for key, value in json.loads(lines[2]).items() if key != "hash"}
    body["accepted"][0]["num_examples"] += 1
    content = {key: value for key, value in body.items() if key not in ("index", "event", "previous")}
    _, line = make_line(body["previous"], body["index"], body["event"], content)
    assert line != lines[2]
    return [*lines[:2], line, *lines[3:]]


CHANGES = {
    "altered and hashed anew": (hashed_anew, "line 4 (entry 3) does not follow the line before it"),
    "altered": (lambda lines: [*lines[:2], lines[2].replace(b"10", b"11", 1), *lines[3:]], "line 3"),
    "reordered": (
        lambda lines: [*lines[:2], lines[3], lines[2], *lines[4:]],
        "line 3 is entry 3, expected entry 2",
    ),
    "missing in the middle": (
        lambda lines: [*lines[:2], *lines[3:]],
        "line 3 is entry 3, expected entry 2: 1 missing",
    ),
    "missing at the start": (lambda lines: lines[1:], "line 1 is entry 1, expected entry 0: 1 missing"),
    "twice": (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 is entry 2, expected entry 3"),
    "truncated": (lambda lines: lines[:3], "lines are missing at the end, after line 3"),
    "torn": (lambda lines: [*lines[:4], lines[4][:40]], "line 5 was altered or cut"),
    "empty line": (lambda lines: [*lines[:2], b"\n", *lines[2:]], "line 3 was altered or cut"),
    "no last newline": (lambda lines: [*lines[:5], lines[5][:-1]], "the last line is cut"),
    "another spelling": (lambda lines: [*lines[:2], lines[2].replace(b",", b", ", 1), *lines[3:]], "line 3"),
    "nothing left": (lambda lines: [], "missing at the end, after line 0"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_every_kind_of_change_is_found_and_located(copied, change):
    path = copied / "ledger.jsonl"
    alter, says = CHANGES[change]
    path.write_bytes(b"".join(alter(path.read_bytes().splitlines(keepends=True))))
    report = verify_ledger(copied)
    assert not report.ok
    assert says in report.problems[0]


@given(st.data())
def test_any_change_to_the_bytes_is_located_at_the_line_it_is_in(run, data):
    whole = (run[0] / "ledger.jsonl").read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 20))
    new = data.draw(st.binary(max_size=5))
    changed = whole[:start] + new + whole[start + cut :]
    if changed == whole:
        return
    lines, problems = check_lines(changed)
    prefix = len(
        check_lines(whole[: whole.rindex(b"\n", 0, start) + 1] if b"\n" in whole[:start] else b"")[0]
    )
    if changed == b"".join(whole.splitlines(keepends=True)[: changed.count(b"\n")]):
        assert len(lines) < len(whole.splitlines())  # cut between lines: only a checkpoint can know
    else:
        first = min((int(p.split()[1]) for p in problems if p.startswith("line ")), default=len(lines))
        assert problems
        assert first >= prefix


def test_a_truncation_shows_only_against_what_is_noted_elsewhere(copied):
    path = copied / "ledger.jsonl"
    shutil.copytree(copied / "checkpoints" / "round-00004", noted := copied.parent / "noted")
    shutil.rmtree(copied / "checkpoints")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    alone = verify_ledger(path)
    assert alone.ok
    assert not alone.finished
    assert "lines are missing at the end" in verify_ledger(path, checkpoint=noted).problems[0]


def test_a_checkpoint_that_is_named_has_to_be_there_and_know_a_ledger(toy, copied, tmp_path):
    with pytest.raises(TornFilesError, match="round-00009` is incomplete"):
        verify_ledger(copied, checkpoint=copied / "checkpoints" / "round-00009")
    other = tmp_path / "other"
    fit(toy, other, callbacks=[RoundCheckpoint()], max_rounds=1)
    with pytest.raises(LedgerError, match="round-00001` was written without a ledger"):
        verify_ledger(copied, checkpoint=other / "checkpoints" / "round-00001")


def test_a_truncation_shows_against_the_last_checkpoint_that_knows_the_ledger(toy, copied):
    fit(toy, copied, callbacks=[RoundCheckpoint()], ckpt_path="last", max_rounds=5)
    assert verify_ledger(copied).ok
    path = copied / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert "lines are missing at the end" in verify_ledger(copied).problems[0]


def test_there_must_be_a_ledger(tmp_path):
    with pytest.raises(LedgerError, match="there is no ledger"):
        verify_ledger(tmp_path)


def test_replaying_kept_updates_gives_every_round_s_digest(run):
    folder, result = run
    assert replay_ledger(folder) == [record.digest for record in result.rounds]


def test_replaying_a_void_round_keeps_the_model(toy, tmp_path):
    def vanish(instruction, reply):
        round_ = instruction.content["config"]["server-round"] if toy.is_train(instruction) else 0
        return None if round_ == 2 else reply

    result = fit(toy, tmp_path, faults=vanish)
    assert [record.void for record in result.rounds] == [False, True, False, False]
    assert replay_ledger(tmp_path) == [record.digest for record in result.rounds]


def test_an_altered_kept_update_is_found(copied):
    folder = copied / "updates" / "round-00002"
    files = read_folder(folder)
    arrays = arrays_from_bytes(files["update-00001.safetensors"])
    arrays["bias"] = arrays["bias"] + 1
    write_folder(folder, {**files, "update-00001.safetensors": arrays_to_bytes(arrays)})
    with pytest.raises(LedgerError, match="round 2: the kept update of `01` differs"):
        replay_ledger(copied)
    (folder / "update-00001.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match="checksum differs"):
        replay_ledger(copied)
    shutil.rmtree(folder)
    with pytest.raises(LedgerError, match="round 2: its updates were not kept"):
        replay_ledger(copied)


def test_only_exact_means_can_be_replayed(toy, make_strategy, tmp_path):
    fit(toy, tmp_path, strategy=make_strategy("FedAvg"))
    with pytest.raises(LedgerError, match=r"ExactFedAvg.*FedAvg"):
        replay_ledger(tmp_path)


def test_a_damaged_ledger_is_not_replayed(copied):
    path = copied / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"num_examples":10', b'"num_examples":99', 1))
    with pytest.raises(LedgerError, match=r"line 2 .* was altered"):
        replay_ledger(copied)


def test_going_on_continues_the_chain_to_the_bytes_of_the_undisturbed_run(toy, tmp_path, run):
    fit(toy, tmp_path, max_rounds=2)
    fit(toy, tmp_path, ckpt_path="last")
    assert (tmp_path / "ledger.jsonl").read_bytes() == (run[0] / "ledger.jsonl").read_bytes()


def test_going_on_refuses_a_damaged_or_foreign_ledger_and_leaves_it_alone(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=2)
    path = tmp_path / "ledger.jsonl"
    damaged = path.read_bytes().replace(b'"num_examples":10', b'"num_examples":99', 1)
    fit(toy, tmp_path / "foreign", max_rounds=2, seed=8)
    foreign = (tmp_path / "foreign" / "ledger.jsonl").read_bytes()
    cases = {
        damaged: "found line 2 .* was altered",
        damaged[:100]: "found line 1 was altered or cut",
        b"": r"expected 3 line\(s\) up to .*, found 0 line\(s\). Put that ledger there, or",
        foreign: r"found 3 line\(s\) of another run",
    }
    for content, says in cases.items():
        path.write_bytes(content)
        with pytest.raises(CallbackError, match=f"is not the ledger that the checkpoint was .*{says}"):
            fit(toy, tmp_path, ckpt_path="last")
        assert path.read_bytes() == content


def test_a_ledger_is_never_written_over(toy, tmp_path):
    fit(toy, tmp_path, callbacks=[RoundLedger()], max_rounds=2)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for ckpt_path, says in ((None, "go on with that by"), ("last", "no checkpoint beside it to go on from")):
        with pytest.raises(CallbackError, match=f"the ledger of another run: .*{says}"):
            fit(toy, tmp_path, callbacks=[RoundLedger()], ckpt_path=ckpt_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before


def test_a_checkpoint_without_a_ledger_cannot_begin_one(toy, tmp_path):
    fit(toy, tmp_path, callbacks=[RoundCheckpoint()], max_rounds=1)
    with pytest.raises(CallbackError, match="written without a ledger"):
        fit(toy, tmp_path, ckpt_path="last")


def test_keeping_updates_changes_nothing_else(toy, tmp_path):
    plain = fit(toy, tmp_path / "plain", callbacks=[RoundLedger()])
    kept = fit(toy, tmp_path / "kept", callbacks=[RoundLedger(keep_updates=True)], strategy=ExactFedAvg())
    assert plain.digest == kept.digest
    assert not (tmp_path / "plain" / "updates").exists()
