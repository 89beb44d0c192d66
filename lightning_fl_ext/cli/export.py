"""`export`: a run's model for others to use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from lightning_fl_ext.cli.errors import WrongInput
from lightning_fl_ext.cli.verify import RunPath


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
) -> None:
    """Write the model of a run, in the form that the end of FILE says.

    model.ckpt is for LitModule.load_from_checkpoint, model.safetensors holds the weights, model.pt2 and
    model.onnx the graph of forward. The model is the one in the run's run.toml, found as when it ran: call
    this from the same folder.
    """
    from lightning_fl_ext.cli.federation import load_model, make_exchange, make_strategy
    from lightning_fl_ext.cli.objects import load_object
    from lightning_fl_ext.cli.settings import merge, read_config
    from lightning_fl_ext.report.history import SETTINGS_FILE
    from lightning_fl_ext.server import export_model, restore_model

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    settings, exchange = run / SETTINGS_FILE, None
    make: Any
    if settings.is_file():
        told = merge(read_config(settings), {"model": model} if model else {})
        make = load_model(told)
        exchange = make_exchange(told, make_strategy(told, has_validation=True))
    elif model is None:
        raise WrongInput(f"there is no `{settings}` that names the model: give `--model MODULE:CLASS`.")
    else:
        make = load_object(model, "`--model`")
    given = load_object(example, "`--example`") if example else None
    written = export_model(restore_model(run, make, number, exchange), file, given)
    print(f"wrote {written}")
