"""Runs the scripts in this folder, each in a process of its own, and prints a table of what came out.

``python -m ecosystem`` runs all of them, ``python -m ecosystem timm opacus`` two.
"""

import os
import subprocess
import sys
from pathlib import Path

from ecosystem._harness import print_header

FOLDER = Path(__file__).parent
SCRIPTS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
MOST_SECONDS = 600


def run(name: str) -> bool:
    """Run one script and print its rows; what it says else only if it fails."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", f"ecosystem.{name}"],
        cwd=FOLDER.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
    )
    for line in done.stdout.splitlines():
        if line.startswith("| "):
            print(line, flush=True)
    if done.returncode:
        print(f"| {name} | FAILED, see below", flush=True)
        print(done.stderr[-3000:], file=sys.stderr, flush=True)
    return not done.returncode


def main(names: list[str]) -> int:
    """Run the named scripts, or all of them, and give the number that failed."""
    if unknown := set(names) - set(SCRIPTS):
        sys.exit(f"There is no script {', '.join(sorted(unknown))}. The scripts: {', '.join(SCRIPTS)}.")
    print_header()
    return sum(not run(name) for name in names or SCRIPTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
