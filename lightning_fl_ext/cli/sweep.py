"""`sweep`: the same run with other settings, one after the other or several at a time."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from lightning_fl_ext.cli.errors import NOT_SO, WrongInput
from lightning_fl_ext.cli.settings import SETTINGS, flag_of
from lightning_fl_ext.cli.show import show_runs
from lightning_fl_ext.text import shown

_ODD = re.compile(r"[^\w.=,+-]+")


def sweep(
    context: typer.Context,
    vary: Annotated[
        list[str],
        typer.Option(
            help="A flag of run, and its values: seed=0,1,2, or model-option=lr=0.1,lr=0.01. Repeatable.",
            metavar="FLAG=VALUES",
        ),
    ],
    into: Annotated[Path, typer.Option(help="Folder of the runs.", metavar="FOLDER")] = Path("runs/sweep"),
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1, metavar="N")] = 1,
) -> None:
    """Run every combination of the values of --vary; all other arguments are those of run.

    Each run has a folder of its own, named by its values. The same command once more goes on where it was
    stopped: runs that are finished are left as they are. At the end it prints the final values, and writes a
    page of all runs.
    """
    plans = plan(vary, into)
    fixed = context.args
    if named := [flag for flag in ("--dir", "--resume", "--json") if flag in fixed]:
        raise WrongInput(
            f"`sweep` gives each run its `--dir`, and goes on by itself: leave out {', '.join(named)}."
        )
    todo = {folder: flags for folder, flags in plans.items() if not _finished(folder)}
    print(f"{len(plans)} runs, {len(plans) - len(todo)} finished before")
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda item: _run(fixed, *item), todo.items()))
    show_runs([folder for folder in plans if (folder / "ledger.jsonl").exists()], into / "report.html", None)
    failed = [folder.name for folder, code in zip(todo, codes, strict=True) if code]
    if failed:
        print(f"{len(failed)} failed: {shown(', '.join(failed), 1000)}; the same command tries them again")
        raise typer.Exit(NOT_SO)


def plan(vary: list[str], into: Path) -> dict[Path, list[str]]:
    """Make the combinations: for each run its folder, and its flags.

    Args:
        vary: ``FLAG=VALUE,VALUE``; a flag's values are separated by commas.
        into: Folder of the runs.

    Raises:
        WrongInput: One is not of that form, or names no flag of ``run``.

    Example:
        >>> for folder, flags in plan(["seed=0,1", "fraction=0.3"], Path("runs")).items():
        ...     print(folder, flags)
        runs/seed=0,fraction=0.3 ['--seed', '0', '--fraction', '0.3']
        runs/seed=1,fraction=0.3 ['--seed', '1', '--fraction', '0.3']
    """
    known = {flag_of(setting) for setting in SETTINGS if setting.name not in ("model", "dir", "resume")}
    choices: list[list[tuple[str, str]]] = []
    for one in vary:
        flag, equals, values = one.partition("=")
        flag = flag.strip().removeprefix("--")
        if not (equals and values) or flag not in known:
            raise WrongInput(
                f"`--vary`: expected FLAG=VALUES with a flag of `run`, such as seed=0,1,2. Got `{one}`."
            )
        choices.append([(flag, value) for value in values.split(",")])
    plans = {}
    for chosen in itertools.product(*choices):
        name = ",".join(value if "=" in value else f"{flag}={value}" for flag, value in chosen)
        plans[into / _ODD.sub("_", name)] = [part for flag, value in chosen for part in (f"--{flag}", value)]
    return plans


def _finished(folder: Path) -> bool:
    from lightning_fl_ext.report import read_history

    return (folder / "ledger.jsonl").exists() and read_history(folder).finished


def _run(fixed: list[str], folder: Path, flags: list[str]) -> int:
    command = [
        sys.executable,
        "-m",
        "lightning_fl_ext",
        "run",
        *fixed,
        *flags,
        "--dir",
        str(folder),
        "--resume",
    ]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    print(f"{folder.name}: {'done' if done.returncode == 0 else shown(last, 400)}", flush=True)
    return done.returncode
