"""`new`: a Flower app to start from."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from lightning_fl_ext.cli.errors import WrongInput

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", re.ASCII)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    sites: Annotated[int, typer.Option(help="How many sites it is for.", min=1, metavar="N")] = 5,
) -> None:
    """Write a ready Flower app into a new folder, NAME.

    It has a small LightningModule, data for its clients, a client and a server app, and runs as it is: in one
    process, in Flower's simulation, and on machines of their own. Its README says how.
    """
    package = check_name(name)
    folder = Path(name)
    if folder.exists():
        raise WrongInput(f"`{folder}` exists: nothing was written. Choose another name, or move it away.")
    for path, text in app_files(name, package, folder.resolve(), sites).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    print(f"wrote {folder}, which waits for {sites} sites (`num-sites` in {folder / 'pyproject.toml'}).")
    print(f"To run it in this process: cd {folder} && python -m {package}")


def check_name(name: str) -> str:
    """Give the name of an app's package.

    Raises:
        WrongInput: It can be none, or it would hide a module that is installed.

    Example:
        >>> check_name("our-digits")
        'our_digits'
        >>> check_name("torch")
        Traceback (most recent call last):
        ...
        lightning_fl_ext.cli.errors.WrongInput: `torch` is a module already: the app would hide it. Choose ...
    """
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package):
        raise WrongInput(
            f"`{name}` cannot be an app's name: expected small letters, digits and single dashes, such as"
            " `our-digits`."
        )
    if importlib.util.find_spec(package) is not None:
        raise WrongInput(f"`{package}` is a module already: the app would hide it. Choose another name.")
    return package


def app_files(name: str, package: str, folder: Path, sites: int) -> dict[str, str]:
    """Give the files of an app, by their paths in its folder.

    Args:
        name: Of the project.
        package: Of the Python package.
        folder: Where the app will be; the README names it.
        sites: How many the server waits for.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_fl_ext.cli"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    values = {"name": name, "package": package, "sites": sites, "runs": (folder / "runs").as_posix()}
    return {
        re.sub(r"^package/", f"{package}/", template.removesuffix(".jinja")): environment.get_template(
            template
        ).render(values)
        for template in environment.list_templates(extensions=["jinja"])
    }
