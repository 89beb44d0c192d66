"""Every strategy of the package goes on after a SIGKILL to the bytes of a run that was never stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = [
    *("CoordinateMedian", "TrimmedMean", "Krum", "MultiKrum", "GeometricMedian", "CentredClipping"),
    *("ExactFedAvgM", "ExactFedAdam", "ExactFedYogi", "ExactFedAdagrad"),
    *("FedProx", "Scaffold", "FedNova", "FedDyn", "Ditto", "FedRep"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    script = Path(__file__).with_name("_killable_strategies.py")
    folder = tmp_path_factory.mktemp("killed")
    run = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_at_any_write_goes_on_to_the_same_digest_and_ledger(report, name):
    digest, kills = report[name]["digest"], report[name]["kills"]
    assert len(kills) > 1
    for kill in kills:
        assert (kill["signal"], kill["digest"], kill["same_ledger"]) == (signal.SIGKILL, digest, True)
    assert len({kill["rounds"] for kill in kills}) > 1, "before and after a round was written"


def test_no_strategy_is_left_out(report):
    assert set(report) == set(NAMES)
    assert len({report[name]["digest"] for name in NAMES}) == len(NAMES)
