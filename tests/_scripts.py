"""Scripts beside the tests, run by an interpreter of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_script(script: Path, *arguments: object) -> Any:
    """Run it with the package and the helpers of the tests in its path; give the JSON of its last line."""
    root = str(Path(__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-W", "ignore", str(script), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RESULT "))
