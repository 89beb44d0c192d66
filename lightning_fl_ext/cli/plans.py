"""What a sweep is made of: for each combination of values a folder, and the arguments of `run`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fl_ext.cli.config import merge, read_config
from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.settings import SETTINGS, RunSettings, flag_of
from lightning_fl_ext.text import shown

_ODD = re.compile(r"[^\w.=,+-]+")
_BETWEEN = re.compile(r",(?![^\[(]*[\])])")  # commas, but for those in brackets
_LONGEST = 180  # characters of a folder's name
_MAY_DIFFER = ("live", "dir", "resume")  # of a run that goes on
_KINDS = {flag_of(s): s.metadata["kind"] for s in SETTINGS if s.name not in ("model", "dir", "resume")}


@dataclass(frozen=True)
class Plan:
    """One run of a sweep.

    Attributes:
        folder: Where it goes; its name tells the values.
        flags: Its flags of ``run``.
        varied: What is varied: the flags' names, and the keys of those that are ``KEY=VALUE``.
    """

    folder: Path
    flags: tuple[str, ...]
    varied: tuple[str, ...]


def plan(vary: Sequence[str], into: Path) -> list[Plan]:
    """Make the combinations.

    Args:
        vary: ``FLAG=VALUE,VALUE``; a flag's values are separated by commas outside of brackets.
        into: Folder of the runs.

    Raises:
        WrongInput: One is not of that form, names no flag of ``run``, or one that was there before.

    Example:
        >>> for made in plan(["seed=0,1", "model-option=widths=[4,2]"], Path("runs")):
        ...     print(made.folder, *made.flags)
        runs/seed=0,widths=_4,2_ --seed=0 --model-option=widths=[4,2]
        runs/seed=1,widths=_4,2_ --seed=1 --model-option=widths=[4,2]
    """
    choices: dict[str, list[tuple[str, str]]] = {}  # by the flag, and a pair's key
    for one in vary:
        flag, equals, values = one.partition("=")
        flag = flag.strip().removeprefix("--")
        if not (equals and values) or flag not in _KINDS:
            raise WrongInput(
                f"`--vary`: expected FLAG=VALUES with a flag of `run`, such as seed=0,1,2. Got `{one}`."
            )
        listed = list(dict.fromkeys(_BETWEEN.split(values)))
        if _KINDS[flag] == "bool" and not {"true", "false"}.issuperset(listed):
            raise WrongInput(f"`--vary`: the values of `{flag}` are true and false. Got `{one}`.")
        key = flag if _KINDS[flag] != "pairs" else f"{flag} {listed[0].partition('=')[0]}"
        if key in choices:
            raise WrongInput(f"`--vary`: `{key}` is there twice. Give all its values at once.")
        choices[key] = [(flag, value) for value in listed]
    plans: dict[Path, Plan] = {}
    for chosen in itertools.product(*choices.values()):
        name = ",".join(value if _KINDS[flag] == "pairs" else f"{flag}={value}" for flag, value in chosen)
        folder = into / _ODD.sub("_", name)
        if folder in plans or len(folder.name) > _LONGEST:  # they differ in odd characters alone
            folder = into / f"{folder.name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        flags = (part for one in chosen for part in _part(*one))
        plans[folder] = Plan(folder, tuple(flags), tuple(choices))
    return list(plans.values())


def _part(flag: str, value: str) -> list[str]:
    if _KINDS[flag] == "bool":
        return [f"--{flag}"] * (value == "true")
    return [f"--{flag}={value}"]


def check_overlap(plans: Sequence[Plan], fixed: Mapping[str, Any]) -> None:
    """Refuse a setting that is varied and fixed as well: one of the two would be ignored.

    Args:
        plans: From :func:`plan`.
        fixed: What all runs are given, by the settings' names.

    Raises:
        WrongInput: There is one.
    """
    for flag in {flag for one in plans for flag in one.varied}:
        name, _, key = flag.partition(" ")
        given = fixed.get(name.replace("-", "_"))
        if given is not None and _KINDS[name] != "list" and (not key or key in given):
            raise WrongInput(f"`{flag}` is given, and varied by `--vary` as well: leave out one of them.")


def finished_before(folder: Path, settings: RunSettings) -> bool:
    """Tell whether a run is there already, and complete.

    Args:
        folder: Of the run.
        settings: What it is to be told.

    Raises:
        WrongInput: The run that is there was told otherwise.
    """
    from lightning_fl_ext.report import read_history
    from lightning_fl_ext.report.history import SETTINGS_FILE

    if not (folder / "ledger.jsonl").exists():
        return False
    rounds = settings.rounds
    if (file := folder / SETTINGS_FILE).exists():
        there = merge(read_config(file), {})
        rounds = there.rounds
        for setting in SETTINGS:
            had, wanted = getattr(there, setting.name), getattr(settings, setting.name)
            prolonged = setting.name == "rounds" and had < wanted
            if setting.name not in _MAY_DIFFER and had != wanted and not prolonged:
                raise WrongInput(
                    f"`{folder}` holds a run with `{flag_of(setting)}` {shown(had)}, where this sweep has"
                    f" {shown(wanted)}: choose another `--into`."
                )
    return rounds == settings.rounds and read_history(folder).finished
