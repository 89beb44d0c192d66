"""Loggers of a run that goes on have each round once, whether they append or begin anew."""

import csv
import json
import shutil

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_fl_ext import RoundCallback, RoundCheckpoint
from lightning_fl_ext.server.callbacks.base import CallbackError

NAME = "clients_accepted"


class Appends(Logger):
    """Stands for MLflow: a run that is gone on with by its id has what it had."""

    store = {}

    def __init__(self, run_id):
        super().__init__()
        self.run_id = run_id

    name = "experiment"

    @property
    def version(self):
        return self.run_id

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        self.store.setdefault(self.run_id, []).append(step)


class Stops(RoundCallback):
    """Fails before the checkpoint of a round is written, and after it is logged."""

    def __init__(self, server_round):
        self.server_round = server_round

    def on_round_end(self, trainer):
        if trainer.current_round == self.server_round:
            raise OSError("power")


def fit(toy, root, logger, *, rounds=4, stop=0):
    callbacks = [Stops(stop), RoundCheckpoint()] if stop else RoundCheckpoint()
    trainer = toy.make_trainer(max_rounds=rounds, callbacks=callbacks, logger=logger, default_root_dir=root)
    grid = toy.make_grid(3)
    if not stop:
        return trainer.fit(toy.Net(), grid, lambda module: {"size": 1.0}, ckpt_path="last")
    with pytest.raises(CallbackError, match="power"):
        trainer.fit(toy.Net(), grid, lambda module: {"size": 1.0}, ckpt_path="last")
    return None


def of_csv(folder):
    with (folder / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def of_tensorboard(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.step for event in events.Scalars("server_size")]


@pytest.fixture(autouse=True)
def _empty():
    Appends.store.clear()


@pytest.mark.parametrize("stop", [2, 3])
def test_one_that_appends_has_each_round_once(toy, tmp_path, stop):
    def loggers():
        return [Appends("same"), TensorBoardLogger(tmp_path / "boards", "run", version="same")]

    fit(toy, tmp_path, loggers(), stop=stop)
    fit(toy, tmp_path, loggers())
    assert Appends.store == {"same": [0, 1, 2, 3, 4]}
    assert sorted(of_tensorboard(tmp_path / "boards" / "run" / "same")) == [0, 1, 2, 3, 4]


def test_one_that_begins_anew_has_each_round_once_too(toy, tmp_path):
    def loggers(run_id):
        return [Appends(run_id), CSVLogger(tmp_path / "logs", "run")]

    fit(toy, tmp_path, loggers("first"), stop=3)
    fit(toy, tmp_path, loggers("second"))
    assert Appends.store == {"first": [0, 1, 2, 3], "second": [0, 1, 2, 3, 4]}
    assert of_csv(tmp_path / "logs" / "run" / "version_0") == [0, 1, 2, 3]
    assert of_csv(tmp_path / "logs" / "run" / "version_1") == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_csv_file_that_is_replaced_is_whole(toy, tmp_path):
    for stop in (2, 3, 0):
        fit(toy, tmp_path, CSVLogger(tmp_path / "logs", "run", version="same"), stop=stop)
    assert of_csv(tmp_path / "logs" / "run" / "same") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [lambda root: CSVLogger(root / "logs", "run"), lambda root: Appends("same")])
def test_one_logger_object_in_two_fits_of_a_run(toy, tmp_path, make):
    logger = make(tmp_path)
    fit(toy, tmp_path, logger, stop=3)
    fit(toy, tmp_path, logger)
    steps = Appends.store.get("same") or of_csv(tmp_path / "logs" / "run" / "version_0")
    assert steps == [0, 1, 2, 3, 4]


def test_another_run_in_the_same_folder_is_logged_from_its_start(toy, tmp_path):
    fit(toy, tmp_path, Appends("same"), rounds=2)
    shutil.rmtree(tmp_path / "checkpoints")
    fit(toy, tmp_path, Appends("same"), rounds=1)
    assert Appends.store["same"] == [0, 1, 2, 0, 1]


DAMAGE = {
    "nothing": "",
    "a list": "[]",
    "another kind": '{"run_id": 3}',
    "no list of loggers": '{"run_id": RUN, "last": 3}',
    "no number": '{"run_id": RUN, "last": {"a": "1"}}',
    "a round that never comes": '{"run_id": RUN, "last": {"a": 3}}',
    "a round of 70 bits": '{"run_id": RUN, "last": {"a": 1180591620717411303424}}',
    "no round": '{"run_id": RUN, "last": {"a": -1}}',
    "no end": "[" * 100_000,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_notes_that_cannot_be_read_hinder_nothing_and_are_told_of(toy, tmp_path, caplog, case):
    fit(toy, tmp_path, Appends("same"), stop=2)
    notes = tmp_path / "logged-rounds.json"
    noted = json.loads(notes.read_bytes())
    logger = json.dumps(*noted["last"])
    damaged = DAMAGE[case].replace("RUN", json.dumps(noted["run_id"])).replace('"a"', logger)
    notes.write_text(damaged)
    fit(toy, tmp_path, Appends("same"), rounds=2)
    assert Appends.store["same"] == [0, 1, 2, 0, 1, 2]
    if case != "another kind":  # or another run's
        assert "logged-rounds.json` is damaged, and loggers are given all rounds" in caplog.text


def test_a_logger_that_is_given_less_than_the_run_goes_through_is_named(toy, tmp_path, caplog):
    fit(toy, tmp_path, Appends("same"), rounds=4)
    shutil.copytree(tmp_path / "checkpoints" / "round-00003", tmp_path / "third")
    shutil.rmtree(tmp_path / "checkpoints")
    trainer = toy.make_trainer(
        max_rounds=5, callbacks=RoundCheckpoint(), logger=Appends("same"), default_root_dir=tmp_path
    )
    trainer.fit(toy.Net(), toy.make_grid(3), lambda module: {"size": 1.0}, tmp_path / "third")
    assert Appends.store["same"] == [0, 1, 2, 3, 4, 5]
    assert "given none of them again" not in caplog.text  # round 4 had been logged, as after a kill
    shutil.rmtree(tmp_path / "checkpoints")
    trainer.fit(toy.Net(), toy.make_grid(3), lambda module: {"size": 1.0}, tmp_path / "third")
    assert Appends.store["same"] == [0, 1, 2, 3, 4, 5]
    assert "Appends has rounds up to 5 already" in caplog.text
