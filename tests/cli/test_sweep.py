"""`sweep` runs every combination, goes on after a stop, and ends with the page; `show` of several runs."""

import csv
import io
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_fl_ext.cli import plans
from lightning_fl_ext.cli.app import main
from lightning_fl_ext.cli.commands import sweep as module
from lightning_fl_ext.report import read_history, read_runs

FIXED = ("lit:Validated", "--data", "lit:Data", "--clients", 2, "--rounds", 1)
CPU = ("--trainer-option", "accelerator=cpu")


@pytest.fixture
def in_process(monkeypatch, call):
    """Runs without a process of their own, which takes seconds to import."""

    def start(arguments):
        code = main(["run", *arguments])
        return SimpleNamespace(poll=lambda: code, returncode=code), io.BytesIO(b"at first\nas it said\n")

    monkeypatch.setattr(module, "_start", start)


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
    more = call("sweep", *FIXED, *CPU, *vary, "--rounds", 2)
    assert more.out.startswith("4 runs, 0 finished before\n")
    assert {len(read_history(ledger).rounds) for ledger in ledgers} == {2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-epochs", 2), "holds a run with `max-epochs` 1, where this sweep has 2: choose another"),
        (("--rounds", 1), "holds a run with `rounds` 2, where this sweep has 1"),
        (
            ("--model-option", "width=3"),
            "with `model-option` {}, where this sweep has {'width': 3}",
        ),
    ],
)
def test_runs_of_other_settings_are_not_taken_for_those_of_this_sweep(
    project, call, in_process, arguments, message
):
    vary = ("--vary", "seed=0", "--into", "grid")
    assert call("sweep", *FIXED, *CPU, *vary, "--rounds", 2).code == 0
    before = (project / "grid" / "seed=0" / "ledger.jsonl").read_bytes()
    done = call("sweep", *FIXED, *CPU, *vary, "--rounds", 2, *arguments)
    assert (done.code, message in done.err) == (2, True), done.err
    assert (project / "grid" / "seed=0" / "ledger.jsonl").read_bytes() == before


def test_a_run_that_fails_is_named_and_the_others_go_on(project, call, in_process):
    done = call("sweep", *FIXED, *CPU, "--vary", "max-update-norm=-1,9")
    assert done.code == 1
    assert "1 failed: max-update-norm=-1; the same command tries them again" in done.out
    assert "max-update-norm=-1: as it said" in done.out
    assert read_history(project / "runs" / "sweep" / "max-update-norm=9").finished


def test_if_all_fail_there_is_no_page_and_no_table(project, call, in_process):
    done = call("sweep", *FIXED, *CPU, "--vary", "model-option=wdth=1")
    assert (done.code, done.err.startswith("error: the model")) == (1, True)
    assert "1 failed: wdth=1" in done.out
    assert "final values" not in done.out


@pytest.fixture
def heeding():
    """Have SIGINT do what it does in a terminal; in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_runs_too_and_begins_no_other(project, call, monkeypatch, heeding, number, code):
    runs = []

    class Run:
        """Stands for a process that goes on until it is ended; the second one brings the signal."""

        ended = waited_for = False

        def poll(self):
            if self is runs[-1]:
                signal.raise_signal(number)

        def terminate(self):
            self.ended = True

        def wait(self):
            self.waited_for = self.ended

    def start(arguments):
        runs.append(Run())
        return runs[-1], io.BytesIO()

    monkeypatch.setattr(module, "_start", start)
    done = call("sweep", *FIXED, "--vary", "seed=0,1,2,3", "--jobs", 2)
    assert (done.code, done.err) == (code, "stopped; the same command goes on\n")
    assert [run.waited_for for run in runs] == [True, True]


@pytest.mark.slow
def test_after_a_stop_the_same_command_ends_with_the_same_weights(project, call):
    """With real processes, of which the first ones are killed with the command itself."""
    command = [sys.executable, "-m", "lightning_fl_ext", "sweep", *map(str, (*FIXED, *CPU))]
    command += ["--rounds", "12", "--vary", "seed=0,1,2", "--jobs", "2", "--into"]
    one = subprocess.Popen([*command, "stopped"], stderr=subprocess.PIPE, text=True)
    while not (project / "stopped" / "seed=0" / "checkpoints" / "round-00002").exists():
        assert one.poll() is None
    one.terminate()
    assert (one.communicate()[1], one.returncode) == ("stopped; the same command goes on\n", 143)
    assert not read_history(project / "stopped" / "seed=0").finished
    subprocess.run([*command, "stopped"], check=True)
    subprocess.run([*command, "straight"], check=True)
    for seed in range(3):
        one, other = (read_history(project / name / f"seed={seed}") for name in ("stopped", "straight"))
        assert (one.finished, len(one.rounds), one.digest) == (True, 12, other.digest)


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
        (("--vary", "seed=1", "--dir=x"), "leave out --dir"),
        (("--vary", "seed=1", "--resume"), "leave out --resume"),
        ((), "Missing option '--vary'"),
        (("--vary", "seed=1", "--vary", "seed=2"), "`seed` is there twice. Give all its values at once"),
        (("--vary", "model-option=lr=1", "--vary", "model-option=lr=2"), "`model-option lr` is there twice"),
        (("--vary", "seed=1", "--seed", 2), "`seed` is given, and varied by `--vary` as well"),
        (("--vary", "model-option=lr=1", "--model-option", "lr=2"), "`model-option lr` is given, and varied"),
        (("--vary", "live=yes"), "the values of `live` are true and false. Got `live=yes`"),
        (("--vary", "seed=one"), "Invalid value for '--seed': 'one' is not a valid integer"),
        (("--vary", "seed=1", "--fractoin", 0.3), "No such option '--fractoin'"),
        (("--vary", "model-option=lr=0.1,0.2"), "`--model-option`: expected KEY=VALUE. Got `0.2`"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(project, call, arguments, message):
    done = call("sweep", *FIXED, *arguments)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (project / "runs").exists()


def test_a_name_is_a_folder_and_two_names_are_two():
    odd = plans.plan(["exclude=a/*,a/+,a\\*,a_*"], Path("x"))
    assert len({one.folder for one in odd}) == 4
    assert {one.folder.parent for one in odd} == {Path("x")}
    long = plans.plan([f"exclude={'a' * 300},{'a' * 301}"], Path("x"))
    assert len({one.folder for one in long}) == 2
    assert max(len(one.folder.name) for one in long) < 255


def test_a_switch_is_varied_by_true_and_false_and_a_list_by_brackets():
    both = plans.plan(["secure=true,false", "model-option=sizes=[4,2],sizes=(1,2)"], Path("x"))
    assert [one.flags for one in both] == [
        ("--secure", "--model-option=sizes=[4,2]"),
        ("--secure", "--model-option=sizes=(1,2)"),
        ("--model-option=sizes=[4,2]",),
        ("--model-option=sizes=(1,2)",),
    ]


def test_show_of_several_runs_prints_final_values_and_writes_a_page_and_rows(project, call, finished, copied):
    done = call("show", finished, copied, "--csv", "rows.csv", "--html", "all.html")
    assert done.code == 0, done.err
    assert "2 runs, final values" in done.out
    assert "val_mae" in done.out
    assert "not finished" not in done.out
    assert "report: all.html" in done.out
    with (project / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert call("show", finished, copied, "--json").code == 2
    assert "there is no run in" in call("show", finished, project / "nowhere").err
    assert call("show", finished, "--csv", "one.csv", "--html", "one.html").code == 0
    assert len((project / "one.csv").read_text().splitlines()) == 4
