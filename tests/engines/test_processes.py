"""A client of two processes in a deployment."""

import json
from pathlib import Path

import pytest
from _deployment import Deployment
from _scripts import run_script

APP = Path(__file__).with_name("processes_app")


@pytest.mark.engines
@pytest.mark.slow
def test_a_client_of_two_processes_gives_a_deployment_the_bytes_of_this_process(tmp_path):
    folders = tmp_path / "deployed", tmp_path / "here"
    for folder in folders:
        folder.mkdir()
    with Deployment(tmp_path / "servers") as deployment:
        deployment.add_nodes({f"site-{i}": {"partition-id": i, "num-partitions": 2} for i in range(2)})
        run = deployment.submit(APP, {"run-dir": str(folders[0])})
        run.wait(timeout=240)
    here = run_script(Path(__file__).with_name("_processes_here.py"), folders[1])
    deployed = json.loads((folders[0] / "outcome.json").read_text())
    assert deployed == here
    assert [accepted for accepted, _ in here["rounds"]] == [["0", "1"]]
