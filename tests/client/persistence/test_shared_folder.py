"""Two clients of one name, links, and disks that are full, in the folder where a client keeps its state."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from _disk import full_after

from lightning_fl_ext import LightningFLError, digest
from lightning_fl_ext.files import ForbiddenFilesError

HOLD = """
import sys
from pathlib import Path
from lightning_fl_ext.client.persistence.state_folder import StateFolder
with StateFolder(Path(sys.argv[1]), "0", "r").locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def holder(tmp_path):
    """Another process of the same client and run, in the middle of a fit."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "kept")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_fit_of_one_client_and_run_is_refused_before_it_begins(kit, ask, globals_, tmp_path, holder):
    class Lit(kit.AdamLit):
        def training_step(self, batch, batch_idx):
            raise AssertionError("the fit has begun")

    with pytest.raises(LightningFLError, match=r"client `0`: another fit is at work .*an id of its own"):
        ask(Lit, globals_[0], 1)
    assert contents(tmp_path / "kept") == {}
    assert ask(kit.AdamLit, globals_[0], 1, run="another").has_content()
    assert ask(kit.AdamLit, globals_[0], 1, to=kit.context(1)).has_content()


def test_an_evaluation_meanwhile_is_not_kept_out(kit, ask, globals_, holder):
    assert ask(kit.Validated, globals_[0], 1, kind="evaluate").has_content()


def test_the_folder_is_free_when_its_holder_is_killed(kit, ask, globals_, holder):
    holder.kill()
    holder.wait()
    assert ask(kit.AdamLit, globals_[0], 1).has_content()


def test_the_folder_is_free_after_a_fit_and_after_one_that_raised(kit, ask, globals_):
    class Fails(kit.AdamLit):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(Fails, globals_[0], 1)
    for server_round in (1, 2):
        assert ask(kit.AdamLit, globals_[0], server_round).has_content()


def test_a_state_that_is_a_link_is_gone_on_from_and_its_target_left_alone(kit, ask, globals_, tmp_path):
    once = [digest(kit.weights(ask(kit.AdamLit, globals_[n], n + 1))) for n in range(3)]
    (kept,) = (tmp_path / "kept").glob("*/*")
    shutil.rmtree(tmp_path / "kept")
    ask(kit.AdamLit, globals_[0], 1)
    path, target = kept / "round-00001", tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    (kept / ".round-00002.part").symlink_to(tmp_path / "nowhere")
    before = contents(target)
    again = [digest(kit.weights(ask(kit.AdamLit, globals_[n], n + 1))) for n in (1, 2)]
    assert again == once[1:]
    assert sorted(p.name for p in kept.iterdir()) == ["round-00002", "round-00003"]
    assert contents(target) == before


def test_a_state_of_another_user_is_an_error_not_a_fresh_optimizer(kit, ask, globals_, tmp_path, monkeypatch):
    ask(kit.AdamLit, globals_[0], 1)
    before = contents(tmp_path / "kept")

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        with pytest.raises(ForbiddenFilesError, match="Permission denied"):
            ask(kit.AdamLit, globals_[1], 2)
    assert contents(tmp_path / "kept") == before


def test_a_full_disk_is_named_and_the_state_is_that_before_the_fit(kit, ask, globals_, tmp_path, monkeypatch):
    ask(kit.AdamLit, globals_[0], 1)
    before = contents(tmp_path / "kept")
    for n in itertools.count():
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_after(n))
            if n == 4:  # three files and their folder
                break
            with pytest.raises(LightningFLError, match=r"client `0`: .*No space left .*Make room"):
                ask(kit.AdamLit, globals_[1], 2)
        assert contents(tmp_path / "kept") == before
    assert ask(kit.AdamLit, globals_[1], 2).has_content()
