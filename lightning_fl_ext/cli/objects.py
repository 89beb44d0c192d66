"""Objects named on the command line as ``MODULE:NAME``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning_fl_ext.cli.errors import WrongInput


def load_object(spec: str, what: str) -> Any:
    """Import what a ``MODULE:NAME`` names; modules in the working directory are found.

    An error that the module itself raises is not caught: its traceback says where.

    Args:
        spec: Such as ``"lit:LitDigits"`` or ``"package.module:Class.method"``.
        what: What it is for, for the message.

    Raises:
        WrongInput: It is not of that form, or there is no such module or name in it.

    Example:
        >>> load_object("math:pi", "`--data`")
        3.141592653589793
        >>> load_object("math:flor", "`--data`")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.cli.errors.WrongInput: `--data`: module `math` has no `flor`. Did you mean `floor`?
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise WrongInput(f"{what}: expected MODULE:NAME, such as `lit:LitDigits`. Got `{spec}`.")
    if module_name.endswith(".py") or "/" in module_name:
        stem = Path(module_name).stem
        raise WrongInput(
            f"{what}: expected a module's name, not a file's. Got `{spec}`. Write `{stem}:{name}`, from the"
            " folder that the file is in."
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: Any = _import(module_name, what)
    for part in name.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, [n for n in dir(found) if not n.startswith("__")], n=1)
            hint = f" Did you mean `{close[0]}`?" if close else ""
            raise WrongInput(f"{what}: module `{module_name}` has no `{name}`.{hint}")
        found = getattr(found, part)
    return found


def _import(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name != missing and not name.startswith(f"{missing}."):
            raise  # the module is there; one that it needs is not
        raise WrongInput(
            f"{what}: there is no module `{missing}`, neither installed nor in `{Path.cwd()}`."
        ) from None
    except ValueError as error:
        raise WrongInput(f"{what}: `{name}` is no module's name: {error}") from None
