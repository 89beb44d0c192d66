"""Quiet defaults give way to what callbacks need, and files go to a folder of their own."""

import os
import random
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichModelSummary,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_fl_ext import (
    FederatedTrainer,
    LocalGrid,
    RoundCallback,
    RoundCheckpoint,
    client_app,
)
from lightning_fl_ext.client.trainers import give_folder, trainer_arguments
from lightning_fl_ext.server import CallbackError

DEVICE = {"accelerator": "cpu", "devices": 1}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*`pkg_resources`.*", "ignore::DeprecationWarning:tensorboard"
)


@pytest.mark.parametrize(
    ("callback", "asked"),
    [
        (ModelCheckpoint, "enable_checkpointing"),
        (TQDMProgressBar, "enable_progress_bar"),
        (ModelSummary, "enable_model_summary"),
        (RichModelSummary, "enable_model_summary"),
        (LearningRateMonitor, "logger"),
    ],
)
def test_a_callback_asks_for_what_it_needs_and_for_nothing_else(callback, asked):
    quiet = trainer_arguments({})
    arguments = trainer_arguments({"callbacks": callback()})
    L.Trainer(**DEVICE, **arguments)
    changed = {name for name in quiet if arguments[name] != quiet[name]}
    assert changed == {asked, "callbacks"}


def test_callbacks_may_be_a_tuple():
    callbacks = trainer_arguments({"callbacks": (ModelCheckpoint(), LearningRateMonitor())})["callbacks"]
    assert [type(callback) for callback in callbacks] == [ModelCheckpoint, LearningRateMonitor]


def test_what_the_user_has_set_stays():
    arguments = trainer_arguments({"callbacks": [ModelCheckpoint()], "enable_checkpointing": False})
    assert arguments["enable_checkpointing"] is False


def federate(kit, trainer, root, clients=3, rounds=2, ckpt_path=None, callbacks=()):
    server = FederatedTrainer(
        max_rounds=rounds,
        enable_progress_bar=False,
        default_root_dir=root,
        callbacks=[RoundCheckpoint(), *callbacks],
    )
    client = client_app(kit.Validated, lambda _: kit.loader(), {**DEVICE, **trainer})
    server.fit(kit.Validated, LocalGrid(client, clients), ckpt_path=ckpt_path)
    assert not [record.rejected for record in server.rounds if record.rejected], server.rounds
    return server


def below(root, run):
    return sorted(str(path.relative_to(root / run)) for path in root.rglob("*") if path.is_file())


def test_checkpoints_and_logs_lie_by_client_and_round(kit, tmp_path):
    trainer = {
        "callbacks": [ModelCheckpoint(), LearningRateMonitor()],
        "logger": CSVLogger(tmp_path / "logs"),
    }
    own = {**trainer, "default_root_dir": tmp_path / "files", "log_every_n_steps": 1}
    server = federate(kit, own, tmp_path / "server")
    run = server.run_id
    found = below(tmp_path / "logs" / "lightning_logs", run)
    for client in "012":
        for name in ("round-00001", "round-00002"):
            assert f"{client}/{name}/metrics.csv" in found
            assert f"{client}/{name}/checkpoints/epoch=0-step=3.ckpt" in found
    assert not [name for name in found if "-v1" in name or "version_" in name]


def test_so_they_do_without_a_logger_and_with_a_folder_of_the_callback(kit, tmp_path):
    trainer = {"callbacks": [ModelCheckpoint(), ModelCheckpoint(tmp_path / "mine", "last", monitor="loss")]}
    server = federate(kit, {**trainer, "default_root_dir": tmp_path / "files"}, tmp_path / "server")
    run = server.run_id
    rounds = [f"{client}/round-{n:05d}" for client in "012" for n in (1, 2)]
    assert below(tmp_path / "files", run) == [f"{r}/checkpoints/epoch=0-step=3.ckpt" for r in rounds]
    assert below(tmp_path / "mine", run) == [f"{r}/last.ckpt" for r in rounds]


class Kills(RoundCallback):
    def on_replies(self, trainer):
        if trainer.current_round == 2:
            raise OSError("power")


def test_a_round_that_is_tried_again_replaces_what_the_first_try_wrote(kit, tmp_path):
    trainer = {"logger": TensorBoardLogger(tmp_path / "logs"), "log_every_n_steps": 1}
    with pytest.raises(CallbackError, match="power"):
        federate(kit, trainer, tmp_path / "server", callbacks=[Kills()])
    server = federate(kit, trainer, tmp_path / "server", ckpt_path="last")
    events = [name for name in below(tmp_path / "logs" / "lightning_logs", server.run_id) if "events" in name]
    assert sorted(os.path.dirname(name) for name in events if "evaluate" not in name) == [
        f"{client}/round-{n:05d}" for client in "012" for n in (1, 2)
    ]


def test_nothing_is_written_where_nothing_asks_for_it(kit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    federate(kit, {}, tmp_path / "server")
    assert os.listdir(tmp_path) == ["server"]


@pytest.mark.parametrize("where", ["in the function", "in a hook"])
def test_a_client_that_seeds_torch_in_its_data_is_told_once(kit, tmp_path, caplog, where):
    class Hooked(L.LightningDataModule):
        def setup(self, stage):
            L.seed_everything(3)

        def train_dataloader(self):
            return kit.loader(shuffle=True)

        val_dataloader = train_dataloader

    def data(context):
        if where == "in a hook":
            return Hooked()
        L.seed_everything(3)
        return kit.loader(shuffle=True)

    states = random.getstate(), torch.get_rng_state()
    server = FederatedTrainer(max_rounds=2, enable_progress_bar=False, default_root_dir=tmp_path)
    server.fit(kit.Validated, LocalGrid(client_app(kit.Validated, data, DEVICE), 3))
    said = [r.getMessage() for r in caplog.records if "seeds torch" in r.getMessage()]
    assert len(said) == 1
    assert "with 3" in said[0]
    assert (random.getstate(), torch.get_rng_state().tolist()) == (states[0], states[1].tolist())
    federate(kit, {}, tmp_path / "other")
    assert len([r for r in caplog.records if "seeds torch" in r.getMessage()]) == 1


@pytest.mark.parametrize("held_out", [False, True])
def test_an_evaluation_on_training_rows_is_told_once(kit, tmp_path, caplog, held_out):
    class Data(L.LightningDataModule):
        def __init__(self, context):
            super().__init__()

        def train_dataloader(self):
            return kit.loader()

        val_dataloader = train_dataloader

    server = FederatedTrainer(max_rounds=2, enable_progress_bar=False, default_root_dir=tmp_path)
    data = Data if held_out else lambda context: kit.loader()
    server.fit(kit.Validated, LocalGrid(client_app(kit.Validated, data, DEVICE), 3))
    said = [r.getMessage() for r in caplog.records if "rows that they train on" in r.getMessage()]
    assert len(said) == (not held_out)


@pytest.mark.parametrize("other", ["experiment-2", "experiment-1/../x", "experiment-1/", "../x", ".."])
def test_a_run_whose_id_begins_alike_or_leads_elsewhere_leaves_the_files_of_another_alone(tmp_path, other):
    kept = tmp_path / "files" / "experiment-1" / "a" / "round-00001" / "model.ckpt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    arguments = {"default_root_dir": tmp_path / "files", "callbacks": [], "logger": False}
    give_folder(arguments, other, "a", 1, "train")
    assert kept.exists()
    folder = Path(arguments["default_root_dir"])
    assert folder.relative_to(tmp_path / "files").parts[1:] == ("a", "round-00001")
    assert ".." not in folder.parts
