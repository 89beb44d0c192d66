"""Clients of two processes on other engines than this process."""

import json
import time
from pathlib import Path

import psutil
import pytest
from _deployment import Deployment
from _scripts import run_script

pytestmark = [pytest.mark.engines, pytest.mark.slow]
APP = Path(__file__).with_name("processes_app")
HERE = Path(__file__).with_name("_processes_here.py")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where the run on another engine writes, and the one in this process."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "kept"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = tmp_path / "there", tmp_path / "here"
    for folder in made:
        folder.mkdir()
    return made


def test_a_client_of_two_processes_gives_a_deployment_the_bytes_of_this_process(tmp_path, folders):
    there, here = folders
    with Deployment(tmp_path / "servers") as deployment:
        deployment.add_nodes({f"site-{i}": {"partition-id": i, "num-partitions": 2} for i in range(2)})
        deployment.submit(APP, {"run-dir": str(there)}).wait(timeout=240)
    told = run_script(HERE, here, 2, 1)
    assert json.loads((there / "outcome.json").read_text()) == told
    assert [accepted for accepted, _ in told["rounds"]] == [["0", "1"]]


def started(folder):
    """The processes in which the clients of two processes have trained."""
    return {path.name.split()[-1] for path in folder.glob("processes/client [02] *")}


def left(mark):
    """The processes of the launcher that are still there."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "environ"])
        if "lightning_fl_ext.client.worker" in (process.info["cmdline"] or ())
        and mark in (process.info["environ"] or {}).values()
    ]


@pytest.mark.parametrize(
    ("launcher", "actors", "expected"),
    [("auto", 2, {12}), ("kept", 1, {2}), ("kept", 2, {2, 4})],
)
def test_processes_of_rays_actors_serve_clients_in_turn_and_end_with_the_run(
    tmp_path, folders, monkeypatch, launcher, actors, expected
):
    """Three rounds of three clients, each with an optimizer and weights of its own that it keeps."""
    there, here = folders
    monkeypatch.setenv("LAUNCHER", launcher)
    asked = {"num-supernodes": 3, "client-resources-num-cpus": 2 // actors, "init-args-num-cpus": 2}
    with Deployment(tmp_path / "servers", simulation=True) as deployment:
        run = deployment.submit(APP, {"run-dir": str(there), "clients": 3, "rounds": 3}, asked)
        log = run.wait(timeout=400)
        deadline = time.monotonic() + 30
        while (still := left(str(tmp_path / "kept"))) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert (there / "outcome.json").exists(), log
    assert not still
    assert len(started(there)) in expected
    monkeypatch.setenv("LAUNCHER", "auto")
    told = run_script(HERE, here, 3, 3)
    assert json.loads((there / "outcome.json").read_text()) == told
    assert [accepted for accepted, _ in told["rounds"]] == [["0", "1", "2"]] * 3
