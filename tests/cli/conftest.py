"""The command line, called as a user calls it, in a folder with a user's module."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_fl_ext.cli.app import main

PROJECT = Path(__file__).with_name("_project")
CPU = ("--trainer-option", "accelerator=cpu")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with `lit.py` in it; what it imports is forgotten afterwards."""
    for file in PROJECT.glob("*.py"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("lit", None)


@pytest.fixture
def call(capsys):
    """Run a command; gives its exit code, its standard output and its standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def federate(call):
    """A short real run of three clients, with further arguments."""

    def run(folder, *arguments, model="lit:Lit", data="lit:data", rounds=2, clients=3):
        fixed = ("--data", data, "--clients", clients, "--rounds", rounds, "--dir", folder, *CPU)
        return call("run", model, *fixed, *arguments)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of three clients and three rounds, made by the command line; copy it to change it."""
    here = tmp_path_factory.mktemp("project")
    shutil.copy(PROJECT / "lit.py", here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(sys, "path", list(sys.path))
        what = ("lit:Validated", "--data", "lit:Data", "--clients", "3", "--rounds", "3", "--seed", "7", *CPU)
        assert main(["run", *what, "--keep-updates", "--quiet", "--dir", "finished"]) == 0
        sys.modules.pop("lit", None)
    return here / "finished"


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture
def rewrite():
    """Change the lines of a run's ledger."""

    def change(folder, alter):
        path = folder / "ledger.jsonl"
        path.write_bytes(b"".join(alter(path.read_bytes().splitlines(keepends=True))))

    return change
