"""`show`: a run as a table, and as a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.values import print_json
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from lightning_fl_ext.report import History
    from lightning_fl_ext.server.record import RoundRecord

_SETTINGS = 36  # columns of the terminal that are kept for what runs were told, and their number
_FIXED, _BETWEEN = 19, 3  # columns of the terminal for the round and its clients, and before each further one
_LEFT_OUT = 20  # columns of the terminal that the last one of the table may need


def show(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN")],
    html: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the page. [default: report.html in the run's folder]", metavar="FILE"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rounds as JSON; write no page.")] = False,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write a row for each run and round, with settings and metrics.", metavar="FILE"),
    ] = None,
) -> None:
    """Print a run's table, and write its report: one HTML page that needs nothing else.

    RUN is the run's folder, or its ledger.jsonl. The table has the foremost metrics, the page all of them:
    charts by round, who took part, and who was left out and why. Of several runs, or of a folder with runs in
    it, the curves stand over each other, with bands over the seeds, above a table of final values.
    """
    from lightning_fl_ext.report import read_history, render_report

    if len(runs) > 1 or not (runs[0].is_file() or (runs[0] / "ledger.jsonl").exists()):
        if as_json:
            raise WrongInput("`--json` is of one run. Of several, `--csv FILE` gives every round.")
        show_runs(runs, html, csv)
        return
    history = read_history(runs[0])
    if csv is not None:
        _write_csv([history], csv)
    if as_json:
        print_json(_plain(history))
        return
    console = Console(highlight=False)
    _print(history, console)
    path = html or history.folder / "report.html"
    _write(path, render_report(history), "--html")
    console.print(Text(f"report: {shown(path, 4000)}"), soft_wrap=True)


def show_runs(paths: list[Path], html: Path | None, csv: Path | None) -> None:
    """Print the final values of several runs, and write a page of their curves.

    Args:
        paths: Runs, or folders with runs in them.
        html: Where the page goes. Default: ``report.html`` in the one folder, else ``runs.html``.
        csv: Where the rows go, if anywhere.

    Raises:
        WrongInput: There is no run in one of them, or a file cannot be written.
    """
    from lightning_fl_ext.report import render_runs
    from lightning_fl_ext.report.overlay import final_table
    from lightning_fl_ext.report.runs import find_runs, group_runs

    found = {run.folder: run for path in paths for run in find_runs(path)}
    runs = list(found.values())
    names, rows = final_table(group_runs(runs))
    console = Console(highlight=False)
    table = Table(title=f"{len(runs)} runs, final values", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("settings", overflow="fold")
    table.add_column("runs", justify="right")
    room, fitting = console.width - _SETTINGS, 0
    for place, name in enumerate(names):
        heading = shown(name, 30)
        room -= max(len(heading), *(len(values[place]) for _, _, values in rows)) + 2
        if room < 0 < place:
            break
        fitting += 1
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for label, count, values in rows:
        table.add_row(Text(shown(label, 200)), f"{count}", *values[:fitting])
    console.print(table)
    if unfinished := sum(not run.finished for run in runs):
        console.print(f"{unfinished} not finished: the values so far")
    if csv is not None:
        _write_csv(runs, csv)
    path = html or (paths[0] / "report.html" if len(paths) == 1 and paths[0].is_dir() else Path("runs.html"))
    _write(path, render_runs(runs), "--html")
    console.print(Text(f"report: {shown(path, 4000)}"), soft_wrap=True)


def _write_csv(runs: list[History], path: Path) -> None:
    from lightning_fl_ext.report.runs import rows_of, to_csv

    _write(path, to_csv(rows_of(runs)), "--csv")


def _write(path: Path, text: str, flag: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = "report" if flag == "--html" else "rows"
        raise WrongInput(f"cannot write the {what}: {error}. Choose another place with `{flag}`.") from None


def _plain(history: History) -> dict[str, Any]:
    return {
        "name": history.name,
        "sound": not history.problems,
        "problems": history.problems,
        "finished": history.finished,
        "head": history.head,
        "digest": history.digest,
        "settings": history.fingerprint,
        "rounds": [record.to_json() | {"metrics": dict(record.metrics)} for record in history.rounds],
    }


def _print(history: History, console: Console) -> None:
    from lightning_fl_ext.report.families import group_metrics
    from lightning_fl_ext.report.scales import show_bytes, show_number

    table = Table(title=Text(shown(history.name), style="table.title"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("round", justify="right")
    table.add_column("clients", justify="right")
    out = [_left_out(record) for record in history.rounds]
    room = console.width - _FIXED
    if any(out):
        room -= min(_LEFT_OUT, max(map(len, ["left out", *out])) + _BETWEEN)
    chosen, hidden = [], 0
    for family in group_metrics(history.rounds):
        show = show_bytes if family.is_bytes else show_number
        for one in family.series:
            heading = f"{shown(family.title, 24)}\n{shown(one.label, 24)}"
            cells = [show(record.metrics.get(one.name)) for record in history.rounds]
            width = max(map(len, (*heading.split("\n"), *cells))) + _BETWEEN
            if width > room:
                hidden += 1
                continue
            room -= width
            table.add_column(Text(heading), justify="right", no_wrap=True)
            chosen.append(cells)
    if any(out):
        table.add_column("left out", overflow="fold")
    for place, record in enumerate(history.rounds):
        table.add_row(
            f"{record.server_round}",
            f"{len(record.accepted)}/{len(record.sampled)}",
            *(values[place] for values in chosen),
            *([Text(shown(out[place], 300), style="yellow")] if any(out) else []),
        )
    console.print(table)
    if hidden:
        console.print(f"{hidden} more metric{'s' * (hidden > 1)} in the report")
    numbers = {n for record in history.rounds for n, v in record.metrics.items() if math.isfinite(v)}
    if none := {n for record in history.rounds for n in record.metrics} - numbers:
        console.print(Text(f"no number in any round: {shown(', '.join(sorted(none)), 400)}", style="yellow"))
    for problem in history.problems:
        console.print(Text(f"the ledger is not sound: {shown(problem, 1000)}", style="red"))
    state = "finished" if history.finished else "not finished"
    console.print(Text(f"{state}, digest {shown(history.digest) or '–'}"), soft_wrap=True)
    _print_sites(history, console)


def _print_sites(history: History, console: Console) -> None:
    from lightning_fl_ext.report.sites import view_sites

    tested = [history.test] if history.test is not None else []
    for where, records in (("at the sites", history.rounds), ("tested at the sites", tested)):
        if (view := view_sites(records, history.told.get("monitor"))) is not None and len(view.rows) > 1:
            for sentence in view.summary:
                console.print(Text(f"{where}: {shown(sentence, 300)}"), soft_wrap=True)
            if view.behind:
                console.print(Text(shown(view.behind, 400), style="yellow"), soft_wrap=True)


def _left_out(record: RoundRecord) -> str:
    from lightning_fl_ext.report.history import left_out

    out = dict.fromkeys(f"{r.client_id}: {r.reason}" for r in left_out(record))  # a client may be twice
    return ", ".join(["void"] * record.void + list(out))
