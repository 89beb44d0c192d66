"""The deployment guide, followed to the letter."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from _deployment import ENVIRONMENT, free_port, paths
from _guide import commands
from _process import Process

from lightning_fl_ext import run_local, verify_ledger

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits_app"
SITES = ("hospital-a", "hospital-b", "hospital-c")


class Reader:
    """Somebody who types what stands in the guide, in a folder beside the examples.

    Everything is as it is printed but for the ports, and the home folder that `~` means.
    """

    def __init__(self, folder):
        self.folder = folder
        self.trial = folder / "trial"
        self.home = folder / "home"
        self.home.mkdir()
        self.trial.mkdir()
        (folder / "examples").symlink_to(EXAMPLES)
        self.env = {**os.environ, **ENVIRONMENT, **paths(), "HOME": str(self.home)}
        self.env.pop("FLWR_HOME")
        self.ports = {str(port): str(free_port()) for port in (8000, 9101, 9102, 9103)}

    def read(self, heading):
        return [
            re.sub(r"\b(8000|910[123])\b", lambda match: self.ports[match[0]], block)
            for block in commands(heading)
        ]

    def type(self, heading):
        """Type a section's commands one after the other; give what they print."""
        said = [
            subprocess.run(
                ["sh", "-ec", block],
                cwd=self.trial,
                env=self.env,
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            )
            for block in self.read(heading)
        ]
        return "".join(done.stdout for done in said)

    def terminal(self, command, name, says=""):
        """Open a terminal for a command that goes on."""
        typed = f"cd '{self.trial}'\nexec env {command}"
        return Process(
            ["sh", "-ec", typed], self.folder / name, self.env, is_ready=lambda process: says in process.log
        )


def undisturbed(folder):
    """Run the app in this process, and give its digest."""
    sys.path.insert(0, str(DIGITS))
    from digits_app import client, server

    config = tomllib.loads((DIGITS / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    run_local(server.app, client.app, 3, run_config={**config, "min-clients": 3, "run-dir": str(folder)})
    return digest(folder)


def digest(folder):
    last = json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])
    return last["digest"]


@pytest.mark.engines
@pytest.mark.slow
def test_the_guide_works_as_it_is_printed_and_its_run_survives_the_superlink(tmp_path):
    reader = Reader(tmp_path)
    reader.type("Certificates")
    reader.type("Keys")
    (command,) = reader.read("The SuperLink")
    superlink = reader.terminal(command, "superlink", says="Uvicorn running")
    nodes = [
        reader.terminal(command, name, says="SuperNode ID:")
        for command, name in zip(reader.read("The SuperNodes"), SITES, strict=True)
    ]
    run_it, ask_the_ledger = reader.read("The run")
    try:
        superlink.start()
        reader.type("The connection")
        reader.type("Names")
        for node in nodes:
            node.start()
        killed = reader.terminal(run_it, "run-1")
        killed.start()
        killed.wait_for("round 1/3  clients 3/3", timeout=180)
        superlink.kill_alone()  # the run that goes on may have to wait until the ServerApp has ended
        killed.wait(timeout=60)
        superlink.start()
        resumed = reader.terminal(run_it, "run-2")
        resumed.start()
        said = resumed.wait(timeout=600)
    finally:
        for process in (*nodes, superlink):
            process.stop()
    assert re.search(r"going on after round [12]\n", said)
    sampled = '"sampled":["hospital-a","hospital-b","hospital-c"]'
    asked = subprocess.run(
        ["sh", "-ec", ask_the_ledger], cwd=reader.trial, capture_output=True, text=True, check=True
    )
    assert asked.stdout.split() == [sampled] * 3
    report = verify_ledger(reader.trial / "first")
    assert report.ok
    assert report.finished
    assert digest(reader.trial / "first") == undisturbed(tmp_path / "undisturbed")
