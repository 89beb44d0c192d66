"""The command line, put together."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Sequence

import click
import typer
from rich.console import Console
from rich.text import Text

from lightning_fl_ext.cli.commands.compare import compare
from lightning_fl_ext.cli.commands.export import export
from lightning_fl_ext.cli.commands.key import key
from lightning_fl_ext.cli.commands.new import new
from lightning_fl_ext.cli.commands.run import run
from lightning_fl_ext.cli.commands.show import show
from lightning_fl_ext.cli.commands.sweep import sweep
from lightning_fl_ext.cli.commands.verify import verify
from lightning_fl_ext.cli.errors import WRONG_INPUT
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.text import shown

_LINES = 500

app = typer.Typer(
    name="lightning-fl-ext",
    help="Federate Lightning models, and look at, check and compare federated runs.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (run, sweep, show, export, verify, compare, key, new):
    paragraphs = inspect.getdoc(command) or ""
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True} if command is sweep else {}
    app.command(context_settings=passed_on, help=re.sub(r"(?<!\n)\n(?!\n)", " ", paragraphs))(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name. Default: the process's.

    Returns:
        The exit code: 0 if all is well, 1 if a check found otherwise, 2 for wrong input, of which one line
        on the standard error says what is wrong with it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        return int(app(arguments, prog_name="lightning-fl-ext", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _complain(error.format_message())
    except LightningFLError as error:
        return _complain(str(error))
    except click.Abort:
        return _complain("stopped")
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(message: str) -> int:
    lines = "\n".join(shown(line, 2000) for line in message.split("\n")[:_LINES])
    line = Text.assemble(("error: ", "bold red"), lines)
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    return WRONG_INPUT
