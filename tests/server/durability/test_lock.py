"""A folder is one run's at a time."""

import fcntl
import os
import subprocess
import sys

import pytest

from lightning_fl_ext import RoundCheckpoint, RoundLedger
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.durability import lock

HOLD = """
import sys
from pathlib import Path
from lightning_fl_ext.server.durability.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process at work in the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("callback", [RoundCheckpoint, RoundLedger])
def test_a_run_is_refused_where_another_is_at_work(toy, tmp_path, holder, monkeypatch, caplog, callback):
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.05)
    trainer = toy.make_trainer(callbacks=callback(), default_root_dir=tmp_path)
    with pytest.raises(
        LightningFLError, match=r"another run is at work in `.*`, and has not ended within 0.05 s"
    ):
        trainer.fit(toy.Net(), toy.make_grid(2), ckpt_path="last" if callback is RoundCheckpoint else None)
    assert caplog.text.count("another run is at work") == 1
    assert os.listdir(tmp_path) == []


def test_a_run_begins_when_the_one_at_work_is_killed(toy, tmp_path, holder, monkeypatch):
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        holder.kill()
        holder.wait()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    result = toy.make_trainer(callbacks=RoundLedger(), default_root_dir=tmp_path).fit(
        toy.Net(), toy.make_grid(2)
    )
    assert len(result.rounds) == 2
    assert len(waited) == 1


def test_a_run_that_writes_nothing_needs_no_folder(toy, tmp_path, holder):
    toy.make_trainer(default_root_dir=tmp_path).fit(toy.Net(), toy.make_grid(2))
    toy.make_trainer(default_root_dir=tmp_path / "none").fit(toy.Net(), toy.make_grid(2))
    assert os.listdir(tmp_path) == []


def test_one_run_after_the_other_may_use_a_folder_also_after_an_error(toy, tmp_path):
    def fail(named, partition, server_round):
        raise ValueError

    for _ in range(2):
        trainer = toy.make_trainer(callbacks=RoundCheckpoint(), default_root_dir=tmp_path)
        with pytest.raises(LightningFLError, match="all 2 clients asked failed"):
            trainer.fit(toy.Net(), toy.make_grid(2, toy.make_app(fit=fail)))


def test_a_file_system_without_locks_is_used_as_it_is(toy, tmp_path, holder, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    trainer = toy.make_trainer(callbacks=RoundLedger(), default_root_dir=tmp_path)
    assert len(trainer.fit(toy.Net(), toy.make_grid(2)).rounds) == 2
