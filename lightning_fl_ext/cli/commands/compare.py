"""`compare`: where two runs first differ."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightning_fl_ext.cli.commands.verify import RunPath
from lightning_fl_ext.cli.errors import NOT_SO
from lightning_fl_ext.cli.values import print_json
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from lightning_fl_ext.report import Comparison, History, TensorDifference

_LISTED = 5


def compare(
    left: RunPath,
    right: RunPath,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Find the first round, client and tensor in which two runs differ.

    Settings that differ are named first. Which tensor it is can be told if both runs kept their updates.
    Exit code 0 if the runs are equal, 1 if they differ, 2 if one cannot be read.
    """
    from lightning_fl_ext.report import compare_runs, read_history

    runs = read_history(left), read_history(right)
    for path, history in zip((left, right), runs, strict=True):
        for problem in history.problems:
            print(f"the ledger of {path} is not sound: {shown(problem, 1000)}", file=sys.stderr)
    found = compare_runs(*runs)
    if as_json:
        print_json({"equal": found.equal, **asdict(found)})
    else:
        for line in _lines(found, runs, (str(left), str(right))):
            print(shown(line, 1000))
    if not found.equal:
        raise typer.Exit(NOT_SO)


def _lines(found: Comparison, runs: tuple[History, History], names: tuple[str, str]) -> Iterator[str]:
    for key, pair in list(found.settings.items())[:_LISTED]:
        yield f"setting {key}: {_both(pair)}"
    if (more := len(found.settings) - _LISTED) > 0:
        yield f"and {more} more settings"
    for key, pair in found.told.items():
        yield f"run.toml {key}: {_both(pair)}"
    if found.metrics_round is not None and found.metrics_round != found.server_round:
        yield f"the first round in which metrics differ: {found.metrics_round}"
        yield from _metrics(found)
    if found.server_round is None:
        yield from _same_weights(found, runs, names)
        return
    yield f"the first round that differs: {found.server_round}"
    clients = list(dict.fromkeys(difference.client_id for difference in found.clients))
    for client in clients[:_LISTED]:
        parts = [f"{d.what} {_both(d.values)}" for d in found.clients if d.client_id == client]
        yield f"  client {client}: {'; '.join(parts)}"
    if len(clients) > _LISTED:
        yield f"  and {len(clients) - _LISTED} more clients"
    for what, pair in found.outcome.items():
        yield f"  {what}: {_both(pair)}"
    if found.metrics_round == found.server_round:
        yield from _metrics(found)
    if found.tensor is not None:
        yield from _tensor(found.tensor, found.tensor_of)
    elif found.note:
        yield f"  {found.note}"


def _same_weights(found: Comparison, runs: tuple[History, History], names: tuple[str, str]) -> Iterator[str]:
    both = min(found.rounds)
    if both:
        same = f"all {both} rounds" if found.rounds[0] == found.rounds[1] else f"the first {both} rounds"
        yield f"{same} have equal updates and weights, digest {runs[0].rounds[both - 1].digest}"
    if found.rounds[0] != found.rounds[1]:
        longer = max((0, 1), key=lambda side: found.rounds[side])
        yield f"only {names[longer]} goes on, to round {found.rounds[longer]}"
    if found.equal:
        yield "the runs are equal"


def _metrics(found: Comparison) -> Iterator[str]:
    for name, pair in list(found.metrics.items())[:_LISTED]:
        yield f"  metric {name}: {_both(pair)}"
    if (more := len(found.metrics) - _LISTED) > 0:
        yield f"  and {more} more metrics"


def _tensor(tensor: TensorDifference, of: str) -> Iterator[str]:
    whose = "the weights" if of == "weights" else f"the update of client {of}"
    yield f"  the first tensor that differs in {whose}: {tensor.name}"
    if tensor.differing:
        largest = "" if tensor.largest is None else f", by at most {tensor.largest:.3g}"
        yield f"    {tensor.differing} of {tensor.elements} elements{largest}"
        yield f"    the first at {list(tensor.index)}: {_both(tensor.values)}"
    else:
        yield f"    {_both(tensor.shapes)}"
    if tensor.others:
        rest = len(tensor.others) - _LISTED
        more = f" and {rest} more" if rest > 0 else ""
        yield f"    others that differ: {', '.join(tensor.others[:_LISTED])}{more}"


def _both(pair: Any) -> str:
    def text(value: Any) -> str:
        if isinstance(value, str) and len(value) == 64:
            return f"{value[:12]}…"
        return "nothing" if value is None else str(value)

    return f"{text(pair[0])} against {text(pair[1])}"
