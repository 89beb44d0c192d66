"""Runs the tests that start no engine with the lowest versions that `pyproject.toml` admits, or the newest.

    python tests/floors.py lowest        # every dependency at its lower bound
    python tests/floors.py newest        # every dependency at its newest version
    python tests/floors.py lowest tests/metrics -x

It builds `.venv-lowest` or `.venv-newest` beside the sources, or uses the one that is there. Torch is that of
`constraints.txt`, since on Linux its other versions may bring a CUDA build of several gigabytes;
`--torch 2.7.0` chooses another one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("simulation", "plot", "fast", "onnx")  # of those who use the package
LOWEST = re.compile(r"([\w.-]+)(\[[\w,]+\])?>=([\w.]+)")


def lower_bounds() -> dict[str, str]:
    """Read the lowest version of each package that this one needs to run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    return {found[1]: found[3] for line in needed if (found := LOWEST.match(line))}


def build(which: str, torch: str) -> Path:
    """Build the environment if it is missing, and give its Python."""
    folder = ROOT / f".venv-{which}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        bounds = {**(lower_bounds() if which == "lowest" else {}), "torch": torch}
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in bounds.items()))
        tested = (
            "PIP_CONSTRAINT",
            "PIP_BUILD_CONSTRAINT",
        )  # set by make for its other targets
        environment = {key: value for key, value in os.environ.items() if key not in tested}
        install = [python, "-m", "pip", "install", "-q", "-c", constraints, "-e", f"{ROOT}[dev]"]
        subprocess.run(install, check=True, env=environment)
        ready.touch()
    return python


def main() -> int:
    """Build one environment and run the tests in it."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("which", choices=["lowest", "newest"])
    pinned = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    parser.add_argument("--torch", default=pinned and pinned[1], help="its version, by default %(default)s")
    arguments, others = parser.parse_known_args()
    python = build(arguments.which, arguments.torch)
    lines = "".join(f"print('{name}', version('{name}'));" for name in lower_bounds())
    subprocess.run([python, "-VV"], check=True)
    subprocess.run([python, "-c", f"from importlib.metadata import version; {lines}"], check=True)
    tests = ["-q", "-n", "2", "--dist", "worksteal", "-m", "not engines and not slow", *others]
    return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
