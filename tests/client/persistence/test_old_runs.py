"""States of runs that are long over do not pile up."""

import os
import time

import pytest
import torch

from lightning_fl_ext.client.persistence.old_runs import KEPT_DAYS, KEPT_RUNS
from lightning_fl_ext.client.persistence.saved_state import SavedState
from lightning_fl_ext.client.persistence.state_folder import StateFolder

DAY = 86400


def age(folder, days):
    then = time.time() - days * DAY
    os.utime(folder.path, (then, then))


@pytest.fixture
def run(tmp_path):
    """A run's folder with a state in it, last written to so many days ago."""

    def write(name, days=0.0, owner="a", server_round=1):
        folder = StateFolder(tmp_path, owner, name)
        folder.write(SavedState(server_round, 0, {}, {"local": {"w": torch.ones(2)}}))
        if days:
            age(folder, days)
        return folder

    return write


def left(folder):
    return {path.name.rpartition("-")[0] for path in folder.path.parent.iterdir()}


def test_of_old_runs_the_newest_stay(run):
    for i in range(KEPT_RUNS + 5):
        run(f"old{i:02d}", days=100 - i)
    new = run("new")
    assert left(new) == {"new", *(f"old{i:02d}" for i in range(6, KEPT_RUNS + 5))}
    assert new.find() is not None


def test_runs_of_the_last_days_stay_however_many(run):
    for i in range(KEPT_RUNS + 5):
        run(f"r{i}", days=KEPT_DAYS - 1)
    assert len(left(run("new"))) == KEPT_RUNS + 6


def test_a_run_that_a_fit_is_at_work_with_stays(run):
    old = run("at-work")
    for i in range(KEPT_RUNS):
        run(f"r{i}")
    age(old, 400)
    with old.locked():
        assert "at-work" in left(run("new"))
    assert "at-work" not in left(run("newer"))


def test_what_is_no_runs_folder_stays_and_so_do_other_clients(run, tmp_path):
    other = run("theirs", days=900, owner="b")
    mine = run("mine")
    beside = mine.path.parent
    (beside / "notes").mkdir()
    (beside / "0-0123456789ab").symlink_to(other.path)
    for i in range(KEPT_RUNS + 2):
        run(f"r{i}", days=300)
    os.utime(mine.path, (1, 1))
    run("new")
    assert {path.name for path in beside.iterdir()} >= {"notes", "0-0123456789ab"}
    assert "mine" not in left(mine)
    assert other.find() is not None


def test_a_clock_that_went_back_removes_nothing(run):
    for folder in [run(f"r{i}") for i in range(KEPT_RUNS + 5)]:
        age(folder, -1000)
    assert len(left(run("new"))) == KEPT_RUNS + 6


def test_a_run_under_way_looks_at_no_other(run):
    first = run("new")
    old = [run(f"old{i:02d}") for i in range(KEPT_RUNS + 5)]
    for folder in old:
        age(folder, 100)
    run("new", server_round=2)
    assert all(folder.find() for folder in old)
    assert [first.has(n) for n in (1, 2)] == [True, True]


def test_what_cannot_be_removed_is_no_error(run, monkeypatch):
    for old in [run(f"old{i:02d}") for i in range(KEPT_RUNS + 5)]:
        age(old, 100)

    def refuses(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lightning_fl_ext.client.persistence.old_runs.remove_folder", refuses)
    assert len(left(run("new"))) == KEPT_RUNS + 6
