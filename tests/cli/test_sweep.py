"""`sweep` runs every combination, goes on after a stop, and ends with the page; `show` of several runs."""

import csv

import pytest

from lightning_fl_ext.cli import sweep as module
from lightning_fl_ext.cli.app import main
from lightning_fl_ext.report import read_history, read_runs

FIXED = ("lit:Validated", "--data", "lit:Data", "--clients", 2, "--rounds", 1)
CPU = ("--trainer-option", "accelerator=cpu")


@pytest.fixture
def in_process(monkeypatch, call):
    """Runs without a process of their own, which takes seconds to import."""

    def run(fixed, folder, flags):
        return main(["run", *fixed, *flags, "--dir", str(folder), "--resume", "--quiet"])

    monkeypatch.setattr(module, "_run", run)


def test_every_combination_runs_once_and_the_page_shows_them(project, call, in_process):
    vary = ("--vary", "seed=0,1", "--vary", "model-option=width=2,width=3", "--into", "runs/grid")
    done = call("sweep", *FIXED, *CPU, *vary)
    assert done.code == 0, done.err
    assert done.out.startswith("4 runs, 0 finished before\n")
    folders = sorted(path.name for path in (project / "runs" / "grid").iterdir() if path.is_dir())
    assert folders == ["seed=0,width=2", "seed=0,width=3", "seed=1,width=2", "seed=1,width=3"]
    rows = read_runs(project / "runs" / "grid")
    assert {(row["seed"], row["model-option width"]) for row in rows} == {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert "model-option width 2" in done.out
    assert (project / "runs" / "grid" / "report.html").exists()
    ledgers = {p: p.read_bytes() for p in (project / "runs" / "grid").glob("*/ledger.jsonl")}
    again = call("sweep", *FIXED, *CPU, *vary)
    assert again.out.startswith("4 runs, 4 finished before\n")
    assert {p: p.read_bytes() for p in ledgers} == ledgers


def test_a_run_that_fails_is_named_and_the_others_go_on(project, call, in_process):
    done = call("sweep", *FIXED, *CPU, "--vary", "max-update-norm=-1,9")
    assert done.code == 1
    assert "1 failed: max-update-norm=-1; the same command tries them again" in done.out
    assert read_history(project / "runs" / "sweep" / "max-update-norm=9").finished


@pytest.mark.slow
def test_runs_have_processes_of_their_own_several_at_a_time(project, call):
    done = call("sweep", *FIXED, *CPU, "--vary", "seed=0,1", "--jobs", 2)
    assert (done.code, done.out.count(": done")) == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--vary", "sed=1,2"),
            "expected FLAG=VALUES with a flag of `run`, such as seed=0,1,2. Got `sed=1,2`",
        ),
        (("--vary", "seed"), "expected FLAG=VALUES"),
        (
            ("--vary", "seed=1", "--dir", "x"),
            "gives each run its `--dir`, and goes on by itself: leave out --dir",
        ),
        ((), "Missing option '--vary'"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(project, call, arguments, message):
    done = call("sweep", *FIXED, *arguments)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (project / "runs").exists()


def test_show_of_several_runs_prints_final_values_and_writes_a_page_and_rows(project, call, finished, copied):
    done = call("show", finished, copied, "--csv", "rows.csv", "--html", "all.html")
    assert done.code == 0, done.err
    assert "2 runs, final values" in done.out
    assert "val_mae" in done.out
    assert "report: all.html" in done.out
    with (project / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert call("show", finished, copied, "--json").code == 2
    assert "there is no run in" in call("show", finished, project / "nowhere").err
    assert call("show", finished, "--csv", "one.csv", "--html", "one.html").code == 0
    assert len((project / "one.csv").read_text().splitlines()) == 4
