"""`export`: a run's model for others to use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from lightning_fl_ext.cli.commands.verify import RunPath
from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.text import shown


def export(
    run: RunPath,
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    number: Annotated[
        int | None, typer.Option("--round", help="Of which round. [default: the last one kept]", metavar="N")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The LightningModule. [default: the one in run.toml]", metavar="MODULE:CLASS"),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            help="What forward takes, for a graph. [default: the module's example_input_array]",
            metavar="MODULE:NAME",
        ),
    ] = None,
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Cut out closed gates, and the channels that they closed.")
    ] = False,
) -> None:
    """Write the model of a run, in the form that the end of FILE says.

    model.ckpt is for LitModule.load_from_checkpoint, model.safetensors holds the weights, model.pt2 and
    model.onnx the graph of forward. The model is the one in the run's run.toml, found as when it ran: call
    this from the same folder. Of what that file names, classes alone are called; give a function by --model.
    """
    from lightning_fl_ext.cli.config import merge, read_config
    from lightning_fl_ext.cli.exchanges import make_exchange
    from lightning_fl_ext.cli.federation import load_model
    from lightning_fl_ext.cli.objects import load_object
    from lightning_fl_ext.cli.strategies import make_strategy
    from lightning_fl_ext.report.history import SETTINGS_FILE
    from lightning_fl_ext.server import export_model, restore_model

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("torch").setLevel(logging.ERROR)  # on the way to a graph it tells of its own parts
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it narrates the strategy's settings
    settings, exchange = run / SETTINGS_FILE, None
    make: Any
    if settings.is_file():
        told = merge(read_config(settings), {"model": model} if model else {})
        _refuse_to_call(told.strategy if ":" in told.strategy else "", "Strategy", settings)
        _refuse_to_call("" if model else told.model, "LightningModule", settings)
        make = load_model(told)
        exchange = make_exchange(told, make_strategy(told, has_validation=True))
    elif model is None:
        raise WrongInput(f"there is no `{settings}` that names the model: give `--model MODULE:CLASS`.")
    else:
        make = load_object(model, "`--model`")
    given = load_object(example, "`--example`") if example else None
    written = export_model(restore_model(run, make, number, exchange), file, given, shrink=shrink)
    print(f"wrote {written}")


def _refuse_to_call(spec: str, base: str, settings: Path) -> None:
    """Refuse what a folder names, unless it is a class of the kind: the folder may be another's.

    A file that came with a run could otherwise have any function called, with any arguments.
    """
    from lightning_fl_ext.cli.objects import load_object

    found = load_object(spec, f"`{settings}`") if spec else None
    kinds = found.__mro__ if isinstance(found, type) else type(found).__mro__
    if spec and all(kind.__name__ != base for kind in kinds):
        hint = f" If you trust it: `--model {shown(spec)}`." if base == "LightningModule" else ""
        raise WrongInput(
            f"`{settings}`: expected the class of a {base}, got `{shown(spec)}`, which would be called.{hint}"
        )
