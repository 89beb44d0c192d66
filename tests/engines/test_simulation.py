"""The same app on Flower's Ray simulation."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.engines
def test_the_ray_simulation_gives_the_digest_of_a_run_in_one_process():
    script = Path(__file__).with_name("_simulation.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "2", "ExactFedAvg"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("digests")]
    assert len(lines) == 1, done.stdout + done.stderr
    local, simulated = lines[0][3:]
    assert local == simulated
