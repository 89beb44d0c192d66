"""Clients whose fits run in two processes of their own."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from _scripts import run_script

run = partial(run_script, Path(__file__).with_name("_federation.py"))
run_mixed = partial(run_script, Path(__file__).with_name("_mixed.py"))


@pytest.fixture(scope="module")
def out():
    return run("ddp,train:1", "fork,train:1,train:2")


def test_ddp_in_processes_of_its_own_gives_the_bytes_of_forked_workers(out):
    assert out["ddp"][0] == out["fork"][0], "Python's random, dropout and shuffles included"
    assert out["ddp"][0]["metrics"]["num-examples"] == 101


def assert_alike(told):
    plain, mixed = told
    assert {"val_loss", "seen"} <= plain["metrics"].keys()
    for name, values in plain.items():
        assert mixed[name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


def test_one_round_of_tensor_parallel_and_fsdp2_together():
    """As with one process each: weights, pooled means, and sums of which no rank adds to what it shares.

    The two processes of the one client are kept for the other.
    """
    assert_alike(run_mixed("kept", "0"))


@pytest.mark.slow
def test_optimizers_in_shards_go_on_as_if_the_fit_had_not_ended(tmp_path):
    told = run_script(Path(__file__).with_name("_kept_shards.py"), tmp_path)
    assert len(told["alike"]) == 6
    for plan, (kept, lived_on) in told["alike"].items():
        assert kept == lived_on, plan
    assert told["moved"].keys() == {"fsdp2", "wrapped"}
    for plan, (one, lived_on) in told["moved"].items():
        for name, values in lived_on.items():
            assert one[name] == pytest.approx(values, rel=1e-4), f"{plan}, in one process after two"


@pytest.mark.slow
def test_tensor_parallel_and_fsdp2_evaluate_as_one_process():
    assert_alike(told := run_mixed("mixed", "1"))
    assert told[0]["counts"] == [9, 9]


def test_every_round_shuffles_anew(out):
    first, second = out["fork"]
    assert first["digest"] != second["digest"]


@pytest.fixture(scope="module")
def failed():
    return run("failing,train:1,train:4")["failing"]


def test_a_rank_that_raises_is_told_with_its_traceback(failed):
    assert "process 1 of 2 raised" in failed[0]["error"]
    assert 'raise OSError("no such disk")' in failed[0]["error"]
    assert not failed[0]["left"]


def test_the_round_after_a_failure_works(failed):
    assert failed[1]["metrics"]["num-examples"] == 101


@pytest.mark.slow
def test_processes_that_are_kept_give_the_same_also_after_a_failure():
    out = run("kept,train:4,train:5,evaluate:5,train:1,train:6", "fork,train:4,train:5,evaluate:5,train:6")
    failed = out["kept"].pop(3)
    assert out["kept"] == out["fork"]
    assert "process 1 of 2 raised" in failed["error"]
    assert not failed["left"]


def said_by(script, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", script, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100).stderr


UNGUARDED = """
import lightning.pytorch as L
from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app

client = client_app(L.LightningModule, lambda context: None, {"accelerator": "cpu", "devices": 2})
trainer = FederatedTrainer(2, ExactFedAvg(fraction_evaluate=0.0), enable_progress_bar=False)
run_local(server_app(L.LightningModule, trainer), client, num_clients=2)
"""


@pytest.mark.slow
def test_a_script_that_starts_its_federation_when_imported_is_told_where_to_put_that(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    said = said_by(tmp_path / "script.py")
    assert said.rstrip().endswith('Put what starts it under `if __name__ == "__main__":`. (script.py:7)')


@pytest.mark.slow
def test_what_every_rank_would_say_rank_0_says():
    said = said_by(Path(__file__).with_name("_federation.py"), "ddp,evaluate:1")
    assert said.count("`data` gives one loader") == 1
    assert "MEMBER" not in said, "nor do Lightning's processes introduce themselves"


@pytest.mark.slow
def test_a_rank_that_is_killed_is_told():
    (told,) = run("failing,train:2")["failing"]
    assert "process 1 of 2 was killed by SIGKILL" in told["error"]
    assert not told["left"]


@pytest.mark.slow
def test_a_rank_that_hangs_is_ended(monkeypatch):
    monkeypatch.setenv("LIMIT", "45")
    told, then = run("failing,train:3,train:4")["failing"]
    assert "took more than `fit_timeout=45.0` seconds" in told["error"]
    assert not told["left"], "workers of loaders included"
    assert then["metrics"]["num-examples"] == 101


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun", "srun", "nodes", "spawn"])
def test_however_processes_are_started_they_give_the_same(name):
    out = run(f"{name},train:1,evaluate:1", "fork,train:1,evaluate:1")
    assert out[name] == out["fork"]


@pytest.mark.slow
def test_a_sharded_module_answers_with_whole_weights():
    first, again = run("fsdp2,train:1,train:1")["fsdp2"]
    assert first == again
    assert first["metrics"]["num-examples"] == 101
    assert {name: len(values) for name, values in first["weights"].items()} == {
        "layer.weight": 3,
        "layer.bias": 1,
    }
