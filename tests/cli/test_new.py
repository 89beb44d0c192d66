"""`new` writes an app that runs as it is."""

import sys
import tomllib
from pathlib import Path

import pytest

from lightning_fl_ext import LightningFLError, run_local
from lightning_fl_ext.report import read_history


@pytest.fixture
def app(project, call):
    done = call("new", "our-digits")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "wrote our-digits, which waits for 5 sites (`num-sites` in our-digits/pyproject.toml).\n"
        "To run it in this process: cd our-digits && python -m our_digits\n"
    )
    yield project / "our-digits"
    for name in [name for name in sys.modules if name.split(".")[0] == "our_digits"]:
        del sys.modules[name]


def config_of(app):
    return tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_the_app_has_what_flower_looks_for(app):
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert project["project"]["name"] == "our-digits"
    assert project["project"]["dependencies"] == []
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "our_digits.server_app:app",
        "clientapp": "our_digits.client_app:app",
    }
    files = sorted(str(path.relative_to(app)) for path in app.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "our_digits/__init__.py",
        "our_digits/__main__.py",
        "our_digits/client_app.py",
        "our_digits/server_app.py",
        "our_digits/task.py",
        "pyproject.toml",
    ]
    for file in app.rglob("*.*"):
        assert "{{" not in file.read_text()


def test_the_app_trains_and_keeps_its_run(app, monkeypatch, capsys):
    monkeypatch.syspath_prepend(app)
    from our_digits import client_app, server_app

    config = {
        **config_of(app),
        "num-server-rounds": 2,
        "num-sites": 3,
        "run-dir": str(app / "runs" / "first"),
    }
    run_local(server_app.app, client_app.app, num_clients=3, run_config=config)
    history = read_history(app / "runs" / "first")
    assert history.finished
    assert [len(record.accepted) for record in history.rounds] == [3, 3]
    first, last = (record.metrics["val_accuracy"] for record in history.rounds)
    assert last > 1 / 3
    assert first > 0
    again = {**config, "num-server-rounds": 3}
    run_local(server_app.app, client_app.app, num_clients=3, run_config=again)
    assert "going on after round 2" in capsys.readouterr().out


def test_the_app_runs_as_a_module_and_keeps_nothing_unless_told_to(app, monkeypatch, capsys):
    pyproject = app / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("num-server-rounds = 5", "num-server-rounds = 1"))
    monkeypatch.syspath_prepend(app)
    before = sorted(Path.cwd().rglob("*"))
    from our_digits.__main__ import main

    main()
    assert "round 1/1  clients 5/5" in capsys.readouterr().out
    assert [
        path for path in sorted(Path.cwd().rglob("*")) if path not in before and "pycache" not in str(path)
    ] == []


def test_the_app_waits_for_the_sites_it_was_made_for(project, call, monkeypatch):
    assert call("new", "our-digits", "--sites", 2).code == 0
    app = project / "our-digits"
    assert config_of(app)["num-sites"] == 2
    assert "num-partitions=2" in (app / "README.md").read_text()
    monkeypatch.syspath_prepend(app)
    try:
        from our_digits import client_app, server_app

        with pytest.raises(LightningFLError, match=r"`min_available_nodes`|2"):
            run_local(server_app.app, client_app.app, num_clients=1, run_config=config_of(app))
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "our_digits"]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Our-Digits", "cannot be an app's name"),
        ("1st", "cannot be an app's name"),
        ("a/b", "cannot be an app's name"),
        ("a--b", "cannot be an app's name"),
        ("-a", "No such option"),
        ("class", "cannot be an app's name"),
        ("", "cannot be an app's name"),
        ("torch", "`torch` is a module already"),
        ("json", "`json` is a module already"),
        ("lightning-fl-ext", "`lightning_fl_ext` is a module already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(project, call, name, says):
    before = sorted(project.iterdir())
    done = call("new", name)
    assert (done.code, says in done.err, len(done.err.splitlines())) == (2, True, 1)
    assert sorted(project.iterdir()) == before


def test_what_is_there_is_never_written_over(app, call):
    before = {path: path.read_bytes() for path in app.rglob("*") if path.is_file()}
    done = call("new", "our-digits")
    assert (done.code, done.err) == (
        2,
        "error: `our-digits` exists: nothing was written. Choose another name, or move it away.\n",
    )
    assert {path: path.read_bytes() for path in app.rglob("*") if path.is_file()} == before
