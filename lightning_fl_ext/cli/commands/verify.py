"""`verify`: check a run's ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_fl_ext.cli.errors import NOT_SO
from lightning_fl_ext.cli.values import print_json
from lightning_fl_ext.text import shown

RunPath = Annotated[Path, typer.Argument(metavar="RUN")]


def verify(
    run: RunPath,
    replay: Annotated[
        bool, typer.Option("--replay", help="Compute each round once more from the updates that were kept.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint kept elsewhere, which knows how long the ledger was.", metavar="FOLDER"
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Hash of a line that was once the last, as noted elsewhere.", metavar="HASH"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="The server's public key: the ledger must be signed by it.", metavar="PUBKEY"),
    ] = None,
    print_head: Annotated[
        bool,
        typer.Option("--print-head", help="Print the last line's hash and no more, to note elsewhere."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Check a run's ledger: whether a line was altered, moved or removed, and with a key who wrote it.

    RUN is the run's folder, or its ledger.jsonl. Exit code 0 if it is sound, 1 if it is not, 2 if there is
    none.
    """
    from lightning_fl_ext.server.durability.ledger import ReplayError, replay_ledger, verify_ledger

    report = verify_ledger(run, checkpoint, key, head)
    problems = list(report.problems)
    replayed: list[str] | None = None
    if replay and not problems:
        try:
            replayed = replay_ledger(run if run.is_dir() else run.parent)
        except ReplayError as error:
            problems.append(str(error))
    if as_json:
        print_json(
            {
                "ok": not problems,
                "rounds": report.rounds,
                "finished": report.finished,
                "head": report.head,
                "signed": key is not None and not problems,
                "problems": problems,
                "replayed": replayed,
            }
        )
    elif print_head and not problems:
        print(report.head)
    else:
        for problem in problems:
            print(shown(problem, 1000))
        end = "" if report.finished else ", not finished"
        print(f"{'not sound' if problems else 'sound'}: {report.rounds} rounds{end}, head {report.head}")
        if replayed is not None:
            print(f"replayed: the kept updates give the digests of all {len(replayed)} rounds")
        if key is not None and not problems:
            print(f"signed: by {key}")
        elif report.signed and key is None:
            print("signed, but not checked: give the server's public key as `--key`")
    if problems:
        raise typer.Exit(NOT_SO)
