"""Loggers of a run that goes on have each round once, whether they append or begin anew."""

import csv
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


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"run_id": 3}', b'{"last": {"a": "b"}}'])
def test_notes_that_cannot_be_read_hinder_nothing(toy, tmp_path, damage):
    fit(toy, tmp_path, Appends("same"), stop=2)
    (tmp_path / "logged-rounds.json").write_bytes(damage)
    fit(toy, tmp_path, Appends("same"), rounds=2)
    assert Appends.store["same"] == [0, 1, 2, 0, 1, 2]
