"""The program: its entry points, its help, and how little it loads."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lightning_fl_ext
from lightning_fl_ext.cli.app import app
from lightning_fl_ext.server.durability.ledger import GENESIS, make_line

ROOT = Path(lightning_fl_ext.__file__).parents[1]
COMMANDS = [command.callback.__name__ for command in app.registered_commands]


def test_the_entry_point_is_declared_and_resolves():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["lightning-fl-ext"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_the_commands(call, arguments):
    done = call(*arguments)
    assert (done.code, done.err) == (0, "")
    for command in COMMANDS:
        assert f" {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    done = call(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: lightning-fl-ext {command}" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("walk",), "No such command 'walk'"),
        (("verify",), "Missing argument 'RUN'"),
        (("verify", "a", "b"), "unexpected extra argument"),
        (("compare", "a"), "Missing argument 'RUN'"),
        (("show", "a", "--hmtl", "b"), "No such option"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(call, arguments, says):
    done = call(*arguments)
    assert (done.code, says in done.err, len(done.err.splitlines()), done.out) == (2, True, 1, "")


@pytest.fixture
def run(tmp_path):
    head, start = make_line(GENESIS, 0, "start", {"fingerprint": {"seed": 1}})
    _, end = make_line(head, 1, "end", {"rounds": 0, "digest": ""})
    (tmp_path / "ledger.jsonl").write_bytes(start + end)
    return tmp_path


def python(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_looking_at_a_run_loads_neither_torch_nor_lightning_nor_flower(run):
    program = (
        "import sys; from lightning_fl_ext.cli.app import main\n"
        "codes = [main(['--help']), main(['run', '--help']), main(['verify', RUN]), main(['show', RUN]),"
        " main(['compare', RUN, RUN]), main(['new', 'torch'])]\n"
        "print(codes, *sorted({'torch', 'lightning', 'flwr', 'torchmetrics', 'ray'} & set(sys.modules)))"
    ).replace("RUN", repr(str(run)))
    done = python("-c", program)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 2]"


def test_the_module_is_the_program_and_its_exit_code_is_the_process_s(run):
    assert python("-m", "lightning_fl_ext", "verify", str(run)).returncode == 0
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"seed":1', b'"seed":2'))
    assert python("-m", "lightning_fl_ext", "verify", str(run)).returncode == 1
    missing = python("-m", "lightning_fl_ext", "verify", str(run / "nowhere"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: there is no ledger at")
    assert len(missing.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error(run):
    command = f"{sys.executable} -m lightning_fl_ext --help | head -c 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["verify", "show", "compare"])
@pytest.mark.parametrize("what", ["nothing there", "an empty file", "no ledger", "a picture"])
def test_what_is_no_run_is_refused_in_one_line(command, what, tmp_path, call):
    path = tmp_path / "run"
    if what != "nothing there":
        path.mkdir()
        content = {"an empty file": b"", "no ledger": b"hello\n", "a picture": b"\x89PNG\r\n\x1a\n\xff"}[what]
        (path / "ledger.jsonl").write_bytes(content)
    done = call(command, path, *[path] * (command == "compare"))
    if command == "verify" and what != "nothing there":
        assert done.code == 1
        assert "not sound" in done.out
    else:
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert len(done.err.splitlines()) == 1
