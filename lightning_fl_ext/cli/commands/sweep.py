"""`sweep`: the same run with other settings, one after the other or several at a time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import click
import typer

from lightning_fl_ext.cli.commands.run import INTERRUPTED, flags_from, settings_from
from lightning_fl_ext.cli.commands.show import show_runs
from lightning_fl_ext.cli.errors import NOT_SO, WrongInput
from lightning_fl_ext.cli.plans import Plan, check_overlap, finished_before, plan
from lightning_fl_ext.text import shown

_LOOK_EVERY = 0.05
"""Seconds between two looks at the processes."""


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
    plans, fixed = plan(vary, into), list(context.args)
    given = _parse(context, fixed)
    if named := [flag for flag in ("dir", "resume", "as_json") if given.get(flag)]:
        flags = ", ".join(f"--{flag.removeprefix('as_')}" for flag in named)
        raise WrongInput(f"`sweep` gives each run its `--dir`, and goes on by itself: leave out {flags}.")
    check_overlap(plans, flags_from(given))
    todo = []
    for one in plans:  # all of them before anything runs
        parsed = _parse(context, [*fixed, *one.flags])
        if not finished_before(one.folder, settings_from(parsed["config"], parsed)):
            todo.append(one)
    print(f"{len(plans)} runs, {len(plans) - len(todo)} finished before", flush=True)
    failed = _run_all(fixed, todo, jobs)
    if there := [one.folder for one in plans if (one.folder / "ledger.jsonl").exists()]:
        show_runs(there, into / "report.html", None)
    if failed:
        print(f"{len(failed)} failed: {shown(', '.join(failed), 1000)}; the same command tries them again")
        raise typer.Exit(NOT_SO)


def _parse(context: click.Context, arguments: list[str]) -> dict[str, Any]:
    """Read arguments as `run` does, which complains of what it does not take."""
    root = context.find_root()
    assert isinstance(root.command, click.Group)
    command = root.command.get_command(root, "run")
    assert command is not None
    return dict(command.make_context("run", list(arguments), parent=root).params)


def _run_all(fixed: Sequence[str], todo: Sequence[Plan], jobs: int) -> list[str]:
    """Run several at a time, and give the names of those that failed; a signal ends them as well."""
    from lightning_fl_ext.server.stopping import TERMINATED, ending_on_sigterm

    waiting, failed = deque(todo), list[str]()
    running: list[_Run] = []
    with ending_on_sigterm():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    one = waiting.popleft()
                    flags = [*fixed, *one.flags, "--dir", str(one.folder), "--resume", "--quiet"]
                    running.append(_Run(one.folder.name, *_start(flags)))
                for run in [run for run in running if run.process.poll() is not None]:
                    running.remove(run)
                    code = run.process.returncode
                    print(f"{run.name}: {shown(run.last_words(), 400) if code else 'done'}", flush=True)
                    failed += [run.name] if code else []
                    run.said.close()
                time.sleep(_LOOK_EVERY)
        except (KeyboardInterrupt, SystemExit) as stop:
            for run in running:
                run.process.terminate()
            for run in running:
                run.process.wait()
                run.said.close()
            print("stopped; the same command goes on", file=sys.stderr)
            raise typer.Exit(TERMINATED if isinstance(stop, SystemExit) else INTERRUPTED) from None
    return failed


@dataclass(frozen=True)
class _Run:
    """A process of `run`, and what it writes to its standard error."""

    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_words(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ended without a word"


def _start(arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start `run` in a process of its own; its standard error goes into a file, which nothing need read."""
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives this function
    command = [sys.executable, "-m", "lightning_fl_ext", "run", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said), said
