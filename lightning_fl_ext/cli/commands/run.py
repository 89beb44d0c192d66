"""`run`: federate a LightningModule in this process."""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lightning_fl_ext.cli.config import merge, read_config
from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.settings import SETTINGS, RunSettings, flag_of
from lightning_fl_ext.cli.values import parse_pairs, print_json

if TYPE_CHECKING:
    from lightning_fl_ext.server import FederatedResult

_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
INTERRUPTED = 130


def run(config: Path | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Federate a LightningModule in this process: no app to write, no server to start.

    MODULE:CLASS is the LightningModule, or a function that makes it, such as lit:LitDigits for the class in
    lit.py. The clients run one after the other; each gets its own data from the function given as --data, and
    trains for --max-epochs in every round. The run's folder gets a checkpoint and a line of the ledger after
    each round, and run.toml, with which it can be repeated.

    Every flag below can be in a config file, by its name without dashes; flags go before it.
    """
    settings = settings_from(config, given)
    folder = choose_folder(settings)
    from lightning_fl_ext.cli.federation import build
    from lightning_fl_ext.engines import run_local
    from lightning_fl_ext.server import RoundProgressBar, server_app

    logging.getLogger("flwr").setLevel(logging.ERROR)  # it narrates what the settings say anyway
    # A script that reads JSON gets nothing else; what the user's own code prints goes elsewhere as well.
    console = Console(highlight=False, stderr=as_json)
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        federation = build(settings, folder, [] if quiet else [RoundProgressBar(console)])
        folder.mkdir(parents=True, exist_ok=True)
        if not settings.resume:
            _clear(folder)  # of a run without a round: another one was refused above
        app = server_app(
            federation.model,
            federation.trainer,
            evaluate=federation.evaluate,
            ckpt_path="last" if settings.resume else None,
            test=settings.test,
        )
        if settings.live and not (quiet or as_json):
            page = f"report, anew after each round: {folder / 'report.html'}"
            console.print(page, markup=False, emoji=False, soft_wrap=True)
        with _stoppable(folder):
            run_local(app, federation.client, settings.clients)
    result = federation.trainer.result
    assert result is not None
    if as_json:
        print_json(_summary(result, folder))
    elif not quiet:
        console.print(
            f"to look at it: lightning-fl-ext show {folder}", markup=False, emoji=False, soft_wrap=True
        )


def settings_from(config: Path | None, given: Mapping[str, Any]) -> RunSettings:
    """Merge the flags that were given with the config file.

    Raises:
        WrongInput: One of them is not what it must be.
    """
    return merge(read_config(config) if config else {}, flags_from(given))


def flags_from(given: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the flags that were given, by the settings' names.

    Raises:
        WrongInput: A ``KEY=VALUE`` is none.
    """
    flags = {}
    for setting in SETTINGS:
        value, kind = given.get(setting.name), setting.metadata["kind"]
        if value is None or (kind in ("list", "pairs") and not value):
            continue
        if kind == "pairs":
            value = parse_pairs(value, f"`--{flag_of(setting)}`", dashes=setting.name == "train_config")
        flags[setting.name] = list(value) if kind == "list" else value
    return flags


def choose_folder(settings: RunSettings) -> Path:
    """Choose the run's folder, without making it.

    Raises:
        WrongInput: It holds another run, and the run is not to go on.
    """
    from lightning_fl_ext.files import CHECKPOINTS, list_checkpoints

    if settings.dir is None:
        if settings.resume:
            raise WrongInput("`--resume` needs the folder of the run to go on with: give `--dir`.")
        taken = {path.name for path in Path("runs").glob("run-*")}
        return Path("runs") / next(f"run-{n}" for n in range(1, len(taken) + 2) if f"run-{n}" not in taken)
    folder = Path(settings.dir)
    if folder.exists() and not folder.is_dir():
        raise WrongInput(f"`--dir`: `{folder}` is not a folder.")
    begun = _has_rounds(folder / "ledger.jsonl") or list_checkpoints(folder / CHECKPOINTS)
    if begun and not settings.resume:
        raise WrongInput(
            f"`{folder}` holds a run already: go on with it by `--resume`, or give another `--dir`."
        )
    return folder


def _has_rounds(ledger: Path) -> bool:
    """Whether a ledger has more than its first line: a run without a round leaves nothing to keep."""
    if not ledger.exists():
        return False
    from lightning_fl_ext.server.durability.ledger import check_lines

    lines, problems = check_lines(ledger.read_bytes())
    return bool(problems) or [line["event"] for line in lines] not in ([], ["start"])


def _clear(folder: Path) -> None:
    """Remove what a run without a round has left."""
    from lightning_fl_ext.server.durability.ledger import SIGNATURE

    for name in ("ledger.jsonl", SIGNATURE):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _stoppable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        from lightning_fl_ext.server.stopping import TERMINATED

        terminated = isinstance(stop, SystemExit) and stop.code == TERMINATED
        # A Trainer turns an interrupt into an exit.
        interrupted = isinstance(stop, KeyboardInterrupt) or isinstance(stop.__context__, KeyboardInterrupt)
        if not (terminated or interrupted):
            raise
        print(f"stopped; to go on: the same command with `--dir {folder} --resume`", file=sys.stderr)
        raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None


def _summary(result: FederatedResult, folder: Path) -> dict[str, Any]:
    from lightning_fl_ext.files import CHECKPOINTS, list_checkpoints

    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    return {
        "dir": str(folder),
        "rounds": sum(record.server_round > 0 for record in result.rounds),
        "void": sum(record.void for record in result.rounds),
        "digest": result.digest,
        "weights": str(checkpoints[-1][1] / "model.safetensors") if checkpoints else None,
        "metrics": result.metrics,
        "rejected": [dict(vars(rejection)) for rejection in result.rejected],
    }


def _parameter(setting: Field[Any]) -> inspect.Parameter:
    about = setting.metadata
    kind: Any = list[str] if about["kind"] in ("list", "pairs") else _TYPES[about["kind"]]
    text = about["help"]
    if setting.default not in (MISSING, None, False):
        text += f" [default: {setting.default}]"
    options: Any = {"help": escape(text), "metavar": about["metavar"], "show_default": False}
    if setting.name == "model":
        what = typer.Argument(**options)
    else:
        what = typer.Option(f"--{flag_of(setting)}", rich_help_panel=about["panel"], **options)
    return _keyword(setting.name, Annotated[kind | None, what], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# Each setting is a flag, so the command's signature is made from their table.
run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *map(_parameter, SETTINGS),
        _keyword(
            "config",
            Annotated[Path | None, typer.Option(help="TOML file of settings.", metavar="FILE")],
            None,
        ),
        _keyword(
            "as_json", Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")], False
        ),
        _keyword("quiet", Annotated[bool, typer.Option("--quiet", help="Show no progress.")], False),
    ]
)
