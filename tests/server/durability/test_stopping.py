"""SIGTERM ends a run as Ctrl-C does, at whichever phase of a round, and the run goes on to the same bytes."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lightning_fl_ext.server.stopping import ending_on_sigterm


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    script = Path(__file__).with_name("_stoppable.py")
    command = [sys.executable, script, tmp_path_factory.mktemp("stopped")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


ENDS = {signal.SIGTERM: ("SystemExit 143", "SystemExit"), signal.SIGINT: ("KeyboardInterrupt",) * 2}


def test_at_every_phase_callbacks_and_loggers_are_told_and_the_last_round_is_whole(report):
    assert len(report["stopped"]) == 16
    for run in report["stopped"]:
        assert (run["ended"], run["told"]) == ENDS[run["signal"]], run
        assert run["logger"] == "failed", run
        assert run["checkpoints"] == [1], run
        assert run["left"] == [], run
        assert run["handler"], run
        assert run["problems"] == [], run


def test_the_run_goes_on_to_the_bytes_of_one_that_was_not_stopped(report):
    assert {run["resumed"] for run in report["stopped"]} == {report["digest"]}
    assert all(run["same_ledger"] for run in report["stopped"])


def test_a_signal_within_a_client_s_fit_in_this_process_ends_the_run(report):
    assert report["fits"] == [
        {"signal": signal.SIGTERM, "ended": "SystemExit 143", "logger": "failed"},
        {"signal": signal.SIGINT, "ended": "SystemExit 1", "logger": "failed"},  # Lightning's own code
    ]


def test_a_handler_that_is_there_stays(monkeypatch):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with ending_on_sigterm():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_outside_the_main_thread_nothing_is_changed():
    seen = []

    def within():
        with ending_on_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=within)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
