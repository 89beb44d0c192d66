"""A run on disk: what is written goes on to the same bytes, and nothing else is accepted."""

import logging
import shutil

import numpy as np
import pytest
import torch
from _checkpoints import fit
from flwr.serverapp.strategy import FedAdam, FedAvg
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_fl_ext import (
    ExactFedAvg,
    RoundCallback,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundLedger,
    WeightExchange,
)
from lightning_fl_ext.files import TornFilesError, list_checkpoints
from lightning_fl_ext.server import CallbackError, CheckpointError

STATEFUL = (
    "ExactFedAvg",
    "FedAvgM",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "DPServerAdaptive",
    "FedMedian",
    "QFedAvg",
)


@pytest.mark.parametrize("name", STATEFUL)
def test_going_on_from_any_round_gives_the_digest_of_the_undisturbed_run(toy, make_strategy, tmp_path, name):
    whole = fit(toy, tmp_path, make_strategy(name))
    checkpoints = list_checkpoints(tmp_path / "checkpoints")
    assert [number for number, _ in checkpoints] == [1, 2, 3, 4]
    for number, path in checkpoints:
        resumed = fit(toy, tmp_path / str(number), make_strategy(name), [], ckpt_path=path)
        assert resumed.digest == whole.digest
        assert resumed.rounds == whole.rounds


@pytest.mark.parametrize("strategy", [ExactFedAvg, FedAvg])
def test_a_resumed_run_samples_the_clients_that_the_undisturbed_one_did(toy, tmp_path, strategy):
    def sample(folder, rounds):
        trainer = toy.make_trainer(
            strategy(fraction_train=0.3),
            callbacks=RoundCheckpoint(),
            default_root_dir=folder,
            max_rounds=rounds,
        )
        result = trainer.fit(toy.Net(), toy.make_grid(10), ckpt_path="last")
        return [record.sampled for record in result.rounds], result.digest

    sample(tmp_path / "stopped", 2)
    resumed, whole = sample(tmp_path / "stopped", 5), sample(tmp_path / "whole", 5)
    assert resumed == whole
    assert len(set(whole[0])) > 1


def test_a_finished_run_can_be_prolonged_to_that_of_a_longer_one(toy, tmp_path):
    fit(toy, tmp_path, FedAdam(), max_rounds=2)
    prolonged = fit(toy, tmp_path, FedAdam(), ckpt_path="last")
    assert prolonged.digest == fit(toy, tmp_path / "whole", FedAdam()).digest


def test_last_without_a_checkpoint_starts_from_the_beginning(toy, tmp_path):
    assert fit(toy, tmp_path, ckpt_path="last").digest == fit(toy, tmp_path / "other").digest


def test_torn_checkpoints_are_skipped_with_a_warning(toy, tmp_path, caplog):
    whole = fit(toy, tmp_path)
    root = tmp_path / "checkpoints"
    (root / "round-00004" / "state.json").write_bytes(b"{")
    (root / "round-00003" / "model.safetensors").unlink()
    weights = root / "round-00002" / "strategy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    shutil.copytree(root / "round-00001", root / ".round-00005.part")
    resumed = fit(toy, tmp_path, ckpt_path="last")
    assert resumed.digest == whole.digest
    skipped = [r.message for r in caplog.records if "skipping a checkpoint" in r.message]
    assert [name in line for name, line in zip(("00004", "00003", "00002"), skipped, strict=True)] == [
        True
    ] * 3
    (root / "round-00003" / "manifest.json").unlink()
    with pytest.raises(TornFilesError, match="incomplete"):
        fit(toy, tmp_path, ckpt_path=root / "round-00003")


DIFFERENT = {
    "model": (lambda toy: {"model": toy.Net()}, "model.norm.weight"),
    "shape": (
        lambda toy: {"model": _wider(toy)},
        "model.weight: the checkpoint has 'float32[2, 3]', this run",
    ),
    "strategy": (lambda toy: {"strategy": FedAvg()}, "strategy: the checkpoint has 'ExactFedAvg'"),
    "setting": (lambda toy: {"strategy": ExactFedAvg(fraction_train=0.5)}, "strategy.fraction_train"),
    "seed": (lambda toy: {"seed": 8}, "seed: the checkpoint has 7, this run 8"),
    "exchange": (lambda toy: {"exchange": WeightExchange(exclude="bias")}, "exchange: the checkpoint has"),
    "screening": (
        lambda toy: {"max_update_norm": 3.0},
        "max_update_norm: the checkpoint has None, this run 3.0",
    ),
}


def _wider(toy):
    model = toy.Net(buffers=True)
    model.weight = torch.nn.Parameter(torch.zeros(2, 4))
    return model


@pytest.mark.parametrize("what", sorted(DIFFERENT))
def test_going_on_with_something_else_is_refused_and_says_what_differs(toy, tmp_path, what):
    fit(toy, tmp_path, max_rounds=1)
    options, says = DIFFERENT[what]
    with pytest.raises(CheckpointError, match="difference") as refused:
        fit(toy, tmp_path, ckpt_path="last", **options(toy))
    assert says in str(refused.value)


def test_the_model_of_a_later_round_is_not_given_out_for_that_of_an_earlier_one(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=3)
    with pytest.raises(CheckpointError, match=r"of round 3, and the run has 2 \(`max.*: give at least 3"):
        fit(toy, tmp_path, max_rounds=2, ckpt_path="last")
    assert len(fit(toy, tmp_path, max_rounds=3, ckpt_path="last").rounds) == 3


def test_what_is_no_checkpoint_is_named_with_what_would_be_one(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=2)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "round-00009", tmp_path / "file", tmp_path / "checkpoints", "best", ""):
        with pytest.raises(CheckpointError, match=r"no checkpoint `.*give the folder.*ckpt_path='last'"):
            fit(toy, tmp_path, ckpt_path=path)
    with pytest.raises(CheckpointError, match=r"a run's folder: its newest checkpoint is `.*round-00002`"):
        fit(toy, tmp_path, ckpt_path=tmp_path)
    with pytest.raises(TypeError, match=r"`ckpt_path` must be 'last'.* Got True"):
        fit(toy, tmp_path, ckpt_path=True)


def test_going_on_without_writing_checkpoints_is_pointed_out(toy, tmp_path, caplog):
    fit(toy, tmp_path, callbacks=[], max_rounds=1, ckpt_path="last")
    assert "no RoundCheckpoint among `callbacks` writes a checkpoint" in caplog.text
    caplog.clear()
    fit(toy, tmp_path, max_rounds=1, ckpt_path="last")
    assert "RoundCheckpoint" not in caplog.text


def test_another_run_s_checkpoints_are_not_written_over(toy, tmp_path):
    fit(toy, tmp_path)
    with pytest.raises(CallbackError, match=r"a run of 4 round\(s\).*ckpt_path='last'"):
        fit(toy, tmp_path)


def test_going_on_from_an_earlier_round_takes_the_later_ones_away(toy, tmp_path, caplog):
    whole = fit(toy, tmp_path, callbacks=[RoundCheckpoint(keep_last=None), RoundLedger()])
    second = tmp_path / "checkpoints" / "round-00002"
    callbacks = [RoundCheckpoint(keep_last=None), RoundLedger()]
    result = fit(toy, tmp_path, callbacks=callbacks, ckpt_path=second, max_rounds=3)
    assert [number for number, _ in list_checkpoints(tmp_path / "checkpoints")] == [1, 2, 3]
    assert "removing the later `round-00004`" in caplog.text
    assert result.rounds == whole.rounds[:3]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_last_rounds_and_the_best_are_kept(toy, tmp_path, mode):
    checkpoint = RoundCheckpoint(keep_last=1, monitor="val_loss", mode=mode)
    result = fit(toy, tmp_path, callbacks=[checkpoint], max_rounds=6)
    losses = [record.metrics["val_loss"] for record in result.rounds]
    best = 1 + losses.index(min(losses) if mode == "min" else max(losses))
    kept = [number for number, _ in list_checkpoints(tmp_path / "checkpoints")]
    assert kept == sorted({best, 6})
    assert checkpoint.best_path == tmp_path / "checkpoints" / f"round-{best:05d}"
    again = RoundCheckpoint(keep_last=1, monitor="val_loss", mode=mode)
    fit(toy, tmp_path, callbacks=[again], max_rounds=6, ckpt_path="last")
    assert again.best_path == checkpoint.best_path


def test_a_metric_to_monitor_that_is_not_there_is_named(toy, tmp_path):
    with pytest.raises(
        CallbackError, match=r"RoundCheckpoint.on_round_end.*round 1.*no metric `nope`.*val_loss"
    ):
        fit(toy, tmp_path, callbacks=[RoundCheckpoint(monitor="nope")])


class Counting(RoundCallback):
    def __init__(self, step):
        self.step, self.total = step, 0

    def on_round_end(self, trainer):
        self.total += self.step

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total = state.get("total", 0)


def test_callbacks_of_one_class_keep_their_states_apart(toy, tmp_path):
    fit(toy, tmp_path, callbacks=[Counting(1), Counting(10), RoundCheckpoint()], max_rounds=2)
    callbacks = [Counting(1), Counting(10), RoundCheckpoint()]
    fit(toy, tmp_path, callbacks=callbacks, max_rounds=3, ckpt_path="last")
    assert [callback.total for callback in callbacks[:2]] == [3, 30]


def test_a_run_that_had_stopped_early_stays_stopped(toy, tmp_path):
    def stopping():
        return [RoundEarlyStopping("clients_accepted", patience=2), RoundCheckpoint()]

    stopped = fit(toy, tmp_path, callbacks=stopping(), max_rounds=9)
    assert len(stopped.rounds) == 3
    assert fit(toy, tmp_path, callbacks=stopping(), max_rounds=9, ckpt_path="last").rounds == stopped.rounds
    patient = [RoundEarlyStopping("clients_accepted", patience=4), RoundCheckpoint()]
    assert len(fit(toy, tmp_path, callbacks=patient, max_rounds=9, ckpt_path="last").rounds) == 5


def test_loggers_receive_every_round_and_the_history_again_on_going_on(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=2, logger=CSVLogger(tmp_path, name="csv"))
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="tensorboard")]
    result = fit(toy, tmp_path, logger=loggers, ckpt_path="last")
    lines = (tmp_path / "csv" / "version_1" / "metrics.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    for row, record in zip(rows, result.rounds, strict=True):
        assert {name: float(row[name]) for name in record.metrics} == record.metrics

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(loggers[1].log_dir).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("val_loss")]
    expected = [(r.server_round, np.float32(r.metrics["val_loss"])) for r in result.rounds]
    assert logged == expected


def test_a_strategy_whose_state_cannot_be_saved_is_refused_before_the_first_round(toy, tmp_path):
    class Odd(FedAvg):
        def __init__(self):
            super().__init__()
            self.memory = {1, 2}

    says = r"on_fit_start.*`Odd\.memory` of type builtins\.set cannot be kept.*without `RoundCheckpoint`"
    with pytest.raises(CallbackError, match=says):
        fit(toy, tmp_path, Odd())


def test_a_fit_without_checkpoints_writes_nothing(toy, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fit(toy, tmp_path, callbacks=[])
    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []
