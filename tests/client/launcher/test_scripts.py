"""Scripts that hold the app: how processes import them, and what becomes of what they print."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import lightning.pytorch as L
import pytest

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.client.launcher.message_file import read_worker_failure, write_message
from lightning_fl_ext.client.launcher.naming import app_name, load_app
from lightning_fl_ext.client.launcher.needs import refuse_untold
from lightning_fl_ext.engines.private import ensure_identity

SCRIPT = """
from pathlib import Path

def write(path, text):
    Path(path).write_text(text)
"""


@pytest.fixture
def modules(monkeypatch):
    """Put back what a script replaces."""
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, sys.modules["__main__"])


def test_a_module_that_python_runs_by_its_name_keeps_its_relative_imports(monkeypatch, tmp_path):
    """As ``python -m pack.main`` runs it."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "model.py").write_text("mine = 5\n")
    (tmp_path / "pack" / "main.py").write_text("from .model import mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    running = ModuleType("__main__")
    running.__file__, running.mine = str(tmp_path / "pack" / "main.py"), object()
    running.__spec__ = ModuleSpec("pack.main", None)
    monkeypatch.setitem(sys.modules, "__main__", running)
    assert app_name(running.mine) == "pack.main:mine"
    assert load_app("pack.main:mine") == 5


def test_a_folder_that_python_runs_is_found_by_its_file(monkeypatch, tmp_path):
    (tmp_path / "__main__.py").write_text("mine = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    running = ModuleType("__main__")
    running.__file__, running.mine = str(tmp_path / "__main__.py"), object()
    running.__spec__ = ModuleSpec("__main__", None)
    monkeypatch.setitem(sys.modules, "__main__", running)
    assert app_name(running.mine) == f"{tmp_path / '__main__.py'}:mine"


@pytest.mark.usefixtures("modules")
def test_what_a_script_defines_reaches_processes_that_are_spawned(tmp_path):
    """As workers of a loader are by its ``multiprocessing_context``, and may be by default."""
    (tmp_path / "script.py").write_text(SCRIPT)
    write = load_app(f"{tmp_path / 'script.py'}:write")
    process = multiprocessing.get_context("spawn").Process(target=write, args=(tmp_path / "out", "done"))
    process.start()
    process.join(60)
    assert (tmp_path / "out").read_text() == "done"


def test_a_process_that_is_not_told_which_of_several_it_is_is_refused(monkeypatch):
    two = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False}
    with pytest.raises(LightningFLError, match=r"one of 2 that `launcher` was to start.*`RANK`"):
        refuse_untold(L.Trainer(**two))
    refuse_untold(L.Trainer(**two | {"devices": 1, "strategy": "auto"}))
    told = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "client"}
    told |= {"LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    refuse_untold(L.Trainer(**two))


PRINTING = """
from flwr.clientapp import ClientApp
from lightning_fl_ext.client.launcher.work import set_work

def work(message, context):
    print("at work", end=" ")
    if message.metadata.message_type == "evaluate":
        raise OSError("no such disk")

app = ClientApp()
set_work(app, work)
"""


@pytest.mark.slow
def test_what_a_kept_process_has_printed_is_not_lost_with_it(tmp_path, message_to):
    """It writes into a pipe, which Python fills in blocks, and its end is a sudden one."""
    (tmp_path / "script.py").write_text(PRINTING)
    command = [sys.executable, "-m", "lightning_fl_ext.client.worker", "--stay", f"{tmp_path}/script.py:app"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RANK": "0"}
    told = [
        json.dumps(["0", str(message_to(kind)), str(tmp_path)]).encode() for kind in ("train", "evaluate")
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, **pipes) as process:
        process.stdin.write(told[0] + b"\n")
        process.stdin.flush()
        end = time.monotonic() + 60
        while not (tmp_path / "done-0").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert os.read(process.stdout.fileno(), 100) == b"at work "
        process.stdin.write(told[1] + b"\n")
        process.stdin.flush()
        assert process.wait(60) == 1
        assert process.stdout.read() == b"at work "
    assert 'OSError("no such disk")' in read_worker_failure(tmp_path / "error-0.json").traceback


@pytest.fixture
def message_to(tmp_path):
    from flwr.app import Context, Message, RecordDict

    def write(kind):
        ensure_identity()
        path = tmp_path / f"{kind}.safetensors"
        write_message(path, Message(RecordDict(), 7, kind), Context(1, 7, {}, RecordDict(), {}))
        return path

    return write
