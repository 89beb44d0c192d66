"""The first round, client and tensor in which two runs differ, planted and found."""

import json
import shutil

import numpy as np
import pytest

from lightning_fl_ext import ExactFedAvg, RoundCheckpoint, RoundLedger
from lightning_fl_ext.report import compare_runs, read_history
from lightning_fl_ext.server.record import RoundRecord

ROUNDS = 4


def fit(toy, folder, faults=None, *, keep=True, app=None, **options):
    callbacks = [RoundLedger(keep_updates=keep), RoundCheckpoint(keep_last=None)]
    trainer = toy.make_trainer(
        callbacks=callbacks, default_root_dir=folder, **{"max_rounds": ROUNDS, **options}
    )
    trainer.fit(toy.Net(buffers=True), toy.make_grid(5, faults=faults, app=app))
    return read_history(folder)


def planting(toy, server_round, client, change):
    """Faults that let one client send something else in one round."""

    def faults(instruction, reply):
        number = instruction.content["config"]["server-round"] if toy.is_train(instruction) else 0
        if number == server_round and toy.client_of(reply) == client:
            return change(reply)
        return reply

    return faults


@pytest.fixture(scope="module")
def plain(toy, tmp_path_factory):
    return fit(toy, tmp_path_factory.mktemp("plain") / "plain")


def test_two_runs_of_one_kind_are_equal(toy, plain, tmp_path):
    found = compare_runs(plain, fit(toy, tmp_path))
    assert found.equal
    assert (found.server_round, found.clients, found.tensor, found.note) == (None, (), None, "")


@pytest.mark.parametrize("server_round", [1, 3])
@pytest.mark.parametrize(
    ("tensor", "place"), [("bias", (1,)), ("norm.running_mean", (0,)), ("weight", (1, 2))]
)
def test_a_planted_difference_is_found_in_its_round_client_and_tensor(
    toy, plain, tmp_path, server_round, tensor, place
):
    def nudge(named):
        named[tensor][place] = np.nextafter(named[tensor][place], np.float32(np.inf))

    faults = planting(toy, server_round, "03", lambda reply: toy.replace_arrays(reply, nudge))
    found = compare_runs(plain, fit(toy, tmp_path, faults))
    assert not found.equal
    assert found.settings == {}
    assert found.server_round == server_round
    assert [(d.client_id, d.what) for d in found.clients] == [("03", "update")]
    assert (found.tensor_of, found.tensor.name) == ("03", tensor)
    assert (found.tensor.index, found.tensor.differing, found.tensor.others) == (place, 1, ())
    assert found.note == ""


def test_without_kept_updates_the_client_is_named_and_why_no_tensor_is(toy, plain, tmp_path):
    def nudge(named):
        named["bias"] += 1

    faults = planting(toy, 2, "01", lambda reply: toy.replace_arrays(reply, nudge))
    found = compare_runs(plain, fit(toy, tmp_path / "bare", faults, keep=False))
    assert (found.server_round, found.clients[0].client_id, found.tensor) == (2, "01", None)
    assert "which tensor differs cannot be told: `bare` did not keep its updates" in found.note


def test_a_client_that_was_left_out_in_one_run_is_named_with_the_reason(toy, plain, tmp_path):
    found = compare_runs(plain, fit(toy, tmp_path, planting(toy, 3, "02", lambda reply: None)))
    assert found.server_round == 3
    differences = {d.what: d.values for d in found.clients if d.client_id == "02"}
    assert differences["left out"] == (None, "no-reply")
    assert differences["update"][1] is None
    assert {d.client_id for d in found.clients} == {"02"}
    assert (found.tensor, found.note) == (None, "")


def test_another_sample_of_clients_is_named(toy, tmp_path):
    runs = [
        fit(toy, tmp_path / str(seed), seed=seed, strategy=ExactFedAvg(fraction_train=0.4)) for seed in (7, 8)
    ]
    found = compare_runs(*runs)
    assert found.settings["seed"] == (7, 8)
    assert next(iter(found.settings)) == "seed"
    asked = [d for d in found.clients if d.what == "asked"]
    assert all(d.values in ((True, False), (False, True)) for d in asked)
    assert asked


def test_another_strategy_is_named_and_the_weights_it_makes(toy, plain, tmp_path):
    class Halved(ExactFedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            weight = arrays["bias"].numpy() * np.float32(0.5 if server_round == 2 else 1)
            arrays["bias"] = type(arrays["bias"])(weight)
            return arrays, metrics

    found = compare_runs(plain, fit(toy, tmp_path, strategy=Halved()))
    assert found.settings["strategy"] == ("ExactFedAvg", "Halved")
    assert (found.server_round, found.clients, [*found.outcome]) == (2, (), ["weights"])
    assert (found.tensor_of, found.tensor.name) == ("weights", "bias")
    shutil.rmtree(tmp_path / "checkpoints")
    again = compare_runs(plain, read_history(tmp_path))
    assert again.tensor is None
    assert "has no checkpoint of round 2" in again.note


def test_a_metric_alone_may_differ(toy, plain, tmp_path):
    app = toy.make_app(metrics=lambda partition, number: {"train_loss": 1.0 / (partition + 3 + (number > 2))})
    found = compare_runs(plain, fit(toy, tmp_path, app=app))
    assert (found.server_round, found.metrics_round, [*found.metrics]) == (None, 3, ["train_loss"])
    assert not found.equal


def test_metrics_that_are_nan_in_both_are_equal(tmp_path, write_ledger):
    rounds = [RoundRecord(1, metrics={"loss": float("nan")})]
    runs = [read_history(write_ledger(tmp_path / name, rounds)) for name in "ab"]
    assert compare_runs(*runs).equal


def test_a_run_that_is_longer_differs_after_the_rounds_both_have(toy, plain, tmp_path):
    found = compare_runs(plain, fit(toy, tmp_path, max_rounds=2))
    assert (found.server_round, found.rounds, found.equal) == (None, (4, 2), False)


def test_a_kept_update_that_is_damaged_is_said(toy, plain, tmp_path):
    def nudge(named):
        named["bias"] += 1

    faults = planting(toy, 1, "00", lambda reply: toy.replace_arrays(reply, nudge))
    other = fit(toy, tmp_path, faults)
    (tmp_path / "updates" / "round-00001" / "update-00000.safetensors").write_bytes(b"")
    found = compare_runs(plain, other)
    assert found.tensor is None
    assert "is damaged" in found.note


def test_a_ledger_that_claims_another_digest_than_what_it_kept_is_caught(plain, tmp_path):
    copied = shutil.copytree(plain.folder, tmp_path / "copied")
    lines = (copied / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    changed = json.loads(lines[2])
    changed["accepted"][1]["digest"] = "f" * 64
    lines[2] = json.dumps(changed, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    (copied / "ledger.jsonl").write_bytes(b"".join(lines))
    found = compare_runs(plain, read_history(copied))
    assert (found.server_round, found.clients[0].client_id) == (2, "01")
    assert "one of the ledgers does not tell the truth" in found.note
