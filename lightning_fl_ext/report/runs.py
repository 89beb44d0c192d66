"""Many runs at once: as plain rows, and grouped by what they were told, seeds apart."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fl_ext.report.history import History, read_history
from lightning_fl_ext.server.durability.ledger import LedgerError
from lightning_fl_ext.text import shown

_FORMULA = ("=", "+", "-", "@")
_NO_SETTING = {"seed", "dir", "rounds"}
_TUPLE = r"\((?:'[^'\\]*',? ?)*\)"
_WEIGHT_EXCHANGE = re.compile(
    rf"WeightExchange\(include=(?P<include>{_TUPLE}), exclude=(?P<exclude>{_TUPLE})\)"
)


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed alone.

    Attributes:
        label: The settings in which it differs from the other groups.
        runs: The runs.
    """

    label: str
    runs: tuple[History, ...]

    def values(self, name: str) -> dict[int, list[float]]:
        """Give a metric's finite values of all runs, by round."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            for record in run.rounds:
                if math.isfinite(value := record.metrics.get(name, math.nan)):
                    found.setdefault(record.server_round, []).append(value)
        return dict(sorted(found.items()))

    def final(self, name: str) -> list[float]:
        """Give each run's last value of a metric, of those in which it is finite."""
        told = [[r.metrics[name] for r in run.rounds if name in r.metrics] for run in self.runs]
        return [values[-1] for values in told if values and math.isfinite(values[-1])]


def find_runs(folder: str | Path) -> list[History]:
    """Read every run in a folder: the folder itself, or those of its folders that hold a ledger.

    Args:
        folder: A run's, or one with runs in it, at any depth.

    Raises:
        LedgerError: There is no run.
    """
    folder = Path(folder)
    if folder.is_file() or (folder / "ledger.jsonl").is_file():
        return [read_history(folder)]
    found = [read_history(path) for path in _ledgers(folder)]
    if not found:
        raise LedgerError(f"there is no run in `{folder}`: no ledger.jsonl, in none of its folders")
    return found


def _ledgers(folder: Path) -> Iterator[Path]:
    """Find every ledger in a folder and in those that it links to, each once, in the order of their names."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = Path(path).resolve()
        if real in seen or "ledger.jsonl" in names:
            folders.clear()  # there is no run in a run
        if real not in seen and "ledger.jsonl" in names:
            yield real / "ledger.jsonl"
        seen.add(real)


def read_runs(folder: str | Path) -> list[dict[str, Any]]:
    """Read all runs in a folder as plain rows, one for each round.

    A row has ``run``, ``round`` and ``finished``, then what the run was told (``seed``, ``strategy``,
    ``model-option lr`` and the like), then the round's metrics. ``pandas.DataFrame(read_runs("runs"))`` makes
    a table of them. A metric called as one of the others is ``metric NAME``.

    Args:
        folder: A run's, or one with runs in it.

    Returns:
        By run, then by round.

    Raises:
        LedgerError: There is no run.
    """
    return rows_of(find_runs(folder))


def rows_of(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Give the rows of runs that were read; see :func:`read_runs`."""
    names = names_of(runs)
    return [
        {"run": name, "round": record.server_round, "finished": run.finished}
        | _settings(run)
        | {_column(metric, run): value for metric, value in record.metrics.items()}
        for name, run in zip(names, runs, strict=True)
        for record in run.rounds
    ]


def _column(metric: str, run: History) -> str:
    """Name a metric's column: clients name metrics, and must not write over what the row says of the run."""
    return f"metric {metric}" if metric in {"run", "round", "finished", *_settings(run)} else metric


def names_of(runs: Sequence[History]) -> list[str]:
    """Name runs by their folders; by their paths where two folders have one name."""
    names = [run.name for run in runs]
    return [str(run.folder) if names.count(run.name) > 1 else run.name for run in runs]


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as comma-separated values, with all columns that any of them has.

    Text that a spreadsheet would take for a formula has an apostrophe before it, as OWASP advises ("CSV
    Injection"): clients choose metrics' names, and whoever made a folder its name.

    Example:
        >>> print(to_csv([{"run": "a", "loss": 0.5}, {"run": "b", "f1": 1.0}]))
        run,loss,f1
        a,0.5,
        b,,1.0
        <BLANKLINE>
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = shown(value, 4096)
    return f"'{text}" if text.startswith(_FORMULA) else text


def group_runs(runs: Sequence[History]) -> list[RunGroup]:
    """Put runs together that were told the same but for the seed.

    A ledger does not know what clients were given. Where runs of one group and seed have other weights, or
    the models other shapes, they are grouped by their folders, or each stands alone.

    Args:
        runs: In any order; the groups come in the order of their first runs.
    """
    told = [{k: v for k, v in _settings(run).items() if k not in _NO_SETTING} for run in runs]
    keys = sorted({key for of_run in told for key in of_run})
    varied = [key for key in keys if len({repr(of_run.get(key)) for of_run in told}) > 1]
    alike: dict[str, list[History]] = {}
    for run, of_run in zip(runs, told, strict=True):
        label = ", ".join(f"{key} {of_run[key]}" for key in varied if key in of_run)
        alike.setdefault(label, []).append(run)
    groups: dict[str, list[History]] = {}
    for label, several in alike.items():
        for where, run in zip(_told_apart(several), several, strict=True):
            groups.setdefault(", ".join(filter(None, (label, where))), []).append(run)
    return [
        RunGroup(label or ("all runs" if len(groups) == 1 else "–"), tuple(g)) for label, g in groups.items()
    ]


def _told_apart(runs: Sequence[History]) -> list[str]:
    """Give each run what tells it from others of its seed: nothing, its folder's folder, or its name."""
    parents = [run.folder.resolve().parent.name for run in runs]
    for names in ([""] * len(runs), parents):
        groups: dict[str, list[History]] = {}
        for name, run in zip(names, runs, strict=True):
            groups.setdefault(name, []).append(run)
        if not any(map(_differ_beyond_seeds, groups.values())):
            return names
    return names_of(runs)


def _differ_beyond_seeds(runs: Sequence[History]) -> bool:
    models = {
        repr(sorted(kv for kv in run.fingerprint.items() if kv[0].startswith("model."))) for run in runs
    }
    weights: dict[tuple[Any, int], str] = {}
    return len(models) > 1 or any(
        weights.setdefault((run.fingerprint.get("seed"), record.server_round), record.digest) != record.digest
        for run in runs
        for record in run.rounds
    )


def _patterns(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Give what a run exchanges in the words of the command line; another kind of exchange as it is."""
    if "exchange" not in fingerprint:
        return {}
    found = _WEIGHT_EXCHANGE.fullmatch(str(fingerprint["exchange"]))
    if found is None:
        return {"exchange": fingerprint["exchange"]}
    patterns = {name: " ".join(re.findall("'([^']*)'", text)) for name, text in found.groupdict().items()}
    return {name: text for name, text in patterns.items() if text}


def _shapes(run: History) -> list[tuple[str, Any]]:
    return sorted(item for item in run.fingerprint.items() if item[0].startswith("model."))


def _settings(run: History) -> dict[str, Any]:
    """Give what a run was told; from its ledger alone, if the command line did not make it."""
    shapes = ("model.", "exchange")
    kept = {k: v for k, v in run.fingerprint.items() if not k.startswith(shapes)} | _patterns(run.fingerprint)
    if run.told:
        kept = {k: v for k, v in kept.items() if k in ("seed", "strategy")}
    lists = {k: " ".join(map(str, v)) for k, v in run.told.items() if isinstance(v, list)}
    return kept | {k: v for k, v in run.told.items() if not isinstance(v, dict)} | lists
