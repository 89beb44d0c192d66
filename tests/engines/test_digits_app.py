"""The example app, as `flwr run` takes it."""

import json
import tomllib
from pathlib import Path

import pytest
from _deployment import Deployment

from lightning_fl_ext import run_local

APP = Path(__file__).parents[2] / "examples" / "digits_app"


def config(**changes):
    defaults = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    return defaults | {"num-server-rounds": 1, "fraction-train": 0.5} | changes


@pytest.fixture
def apps(monkeypatch):
    monkeypatch.syspath_prepend(APP)
    from digits_app import client, server

    return server.app, client.app


@pytest.fixture
def ledger_here(apps, tmp_path):
    """Runs the app in this process, in a named folder, and gives its ledger."""

    def run(folder="here", **changes):
        changes["run-dir"] = str(tmp_path / folder)
        run_local(*apps, 10, run_config=config(**changes))
        return (tmp_path / folder / "ledger.jsonl").read_bytes()

    return run


@pytest.mark.engines
@pytest.mark.slow
def test_flwr_run_simulates_ten_supernodes_and_gives_what_this_process_gives(ledger_here, tmp_path):
    folder = tmp_path / "there"
    with Deployment(tmp_path / "servers", simulation=True) as deployment:
        run = deployment.submit(APP, config(**{"run-dir": str(folder)}), {"num-supernodes": 10})
        said = run.wait(timeout=300)
        assert deployment.status(run) == "finished:completed", said
    assert "clients 5/5" in said
    assert (folder / "ledger.jsonl").read_bytes() == ledger_here()


@pytest.mark.parametrize(("strategy", "rate"), [("FedAdam", 0.01), ("FedPM", 0.1)])
def test_the_run_config_chooses_strategy_and_model(ledger_here, strategy, rate):
    ledger = ledger_here(strategy=strategy, **{"learning-rate": rate})
    start, *_, end = map(json.loads, ledger.splitlines())
    assert start["fingerprint"]["strategy"] == strategy
    assert end["event"] == "end"


def test_a_run_goes_on_in_its_folder(ledger_here):
    ledger_here("resumed", **{"num-server-rounds": 1})
    resumed = ledger_here("resumed", **{"num-server-rounds": 2})
    assert resumed == ledger_here("whole", **{"num-server-rounds": 2})
