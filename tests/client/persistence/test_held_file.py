"""θ that a client holds, over a restart of the client: it is in a file, which is not trusted."""

import logging
from pathlib import Path

import numpy as np
import pytest
from _masked_fits import LitMasked, data

from lightning_fl_ext import (
    FederatedTrainer,
    FedPM,
    LocalGrid,
    MaskExchange,
    RoundCallback,
    client_app,
)
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.files import arrays_from_bytes, arrays_to_bytes
from lightning_fl_ext.wire.masks.names import COUNTS, MODEL, TRIALS

ROUNDS, CLIENTS = 3, 3
NAME = "held.safetensors"


class Restarts(RoundCallback):
    """Starts all clients again before every round: each has a new context, and files live on."""

    def __init__(self, grid, meanwhile=lambda server_round: None):
        self.grid, self.meanwhile = grid, meanwhile

    def on_round_start(self, trainer):
        for context in self.grid._contexts.values():
            context.state.clear()
        self.meanwhile(trainer.current_round)


@pytest.fixture
def federate(tmp_path):
    def run(keep_local, *, restarts=True, meanwhile=lambda server_round: None, evaluate=0.0, rounds=ROUNDS):
        exchange = MaskExchange()
        given = {"max_epochs": 1, "accelerator": "cpu"}
        client = client_app(LitMasked, data, given, exchange=exchange, keep_local=keep_local)
        grid = LocalGrid(client, CLIENTS)
        trainer = FederatedTrainer(
            max_rounds=rounds,
            strategy=FedPM(fraction_evaluate=evaluate),
            seed=7,
            exchange=exchange,
            callbacks=[Restarts(grid, meanwhile)] if restarts else [],
            default_root_dir=tmp_path / "server",
            enable_progress_bar=False,
        )
        trainer.fit(LitMasked, grid)
        assert [record.accepted for record in trainer.rounds] == [tuple("012")] * rounds
        assert not any(record.rejected for record in trainer.rounds)
        return trainer

    return run


def down_bytes(trainer):
    return [record.metrics["bytes_down"] for record in trainer.rounds]


def test_a_client_that_is_started_again_is_sent_what_one_that_lived_on_is(federate, tmp_path):
    lived_on = federate(False, restarts=False)
    again = federate(tmp_path / "kept")
    assert again.result.digest == lived_on.result.digest
    assert down_bytes(again) == down_bytes(lived_on)
    forgot = federate(False)
    assert forgot.result.digest == lived_on.result.digest
    more = np.subtract(down_bytes(forgot), down_bytes(lived_on))
    assert (more > 0).tolist() == [False, False, True], "of the first θ and what builds on it, modules tell"


def test_the_file_holds_what_the_last_message_was_about_in_the_run_s_folder(federate, tmp_path):
    federate(tmp_path / "kept", rounds=2)
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert [path.parts[-3].split("-")[0] for path in files] == list("012")
    thetas = [arrays_from_bytes(path.read_bytes()) for path in files]
    assert all(list(theta) == [COUNTS, TRIALS, MODEL] and theta[TRIALS] == CLIENTS for theta in thetas)
    assert {theta[COUNTS].tobytes() for theta in thetas} == {thetas[0][COUNTS].tobytes()}
    for folder in (files[0].parent, files[0].parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_theta_that_is_held_already_is_not_written_again(federate, tmp_path, monkeypatch):
    written = []

    def write(folder, name, content):
        written.append(name)
        write_file(folder, name, content)

    write_file = StateFolder.write_file
    monkeypatch.setattr(StateFolder, "write_file", write)
    federate(tmp_path / "kept", restarts=False, evaluate=1.0)
    assert written == [NAME] * CLIENTS * (ROUNDS + 1), "the first, and that which each round has made"


def altered(change):
    def damage(path):
        arrays = {name: np.array(array) for name, array in arrays_from_bytes(path.read_bytes()).items()}
        change(arrays)
        path.write_bytes(arrays_to_bytes(arrays))

    return damage


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def is_a_folder(path):
    path.unlink()
    path.mkdir()


READABLE = {
    "another count": altered(lambda a: a[COUNTS].__setitem__(7, 3 - a[COUNTS][7])),
    "a flipped bit": flip_a_bit,
    "other trials": altered(lambda a: a.update({TRIALS: a[TRIALS] + 1})),
    "counts beyond all trials": altered(lambda a: a[COUNTS].fill(200)),
    "no trials": altered(lambda a: a.pop(TRIALS)),
    "no counts": altered(lambda a: a.pop(COUNTS)),
    "several trials": altered(lambda a: a.update({TRIALS: np.array([3, 3])})),
    "not a number of trials": altered(lambda a: a.update({TRIALS: np.array(np.nan)})),
    "trials without end": altered(lambda a: a.update({TRIALS: np.array(np.inf)})),
    "counts that are fractions": altered(lambda a: a.update({COUNTS: a[COUNTS] + 0.5})),
    "counts in a square": altered(lambda a: a.update({COUNTS: a[COUNTS][None]})),
    "fewer counts": altered(lambda a: a.update({COUNTS: a[COUNTS][:-1]})),
    "another model": altered(lambda a: a[MODEL].__setitem__(0, a[MODEL][0] ^ 1)),
    "a folder in its place": is_a_folder,
    "nothing": Path.unlink,
}
UNREADABLE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"\x80\x04K\x01." * 40),
}


@pytest.mark.parametrize("name", [*READABLE, *UNREADABLE])
def test_whatever_else_lies_there_costs_the_whole_theta_and_changes_nothing(federate, tmp_path, name, caplog):
    """Of one client of three, before round 3."""

    def damage(server_round):
        if server_round == 3:
            (path,) = (tmp_path / "kept").glob(f"1-*/*/{NAME}")
            (READABLE | UNREADABLE)[name](path)

    expected = federate(False, restarts=False)
    with caplog.at_level(logging.WARNING):
        trainer = federate(tmp_path / "kept", meanwhile=damage)
    assert trainer.result.digest == expected.result.digest
    more = np.subtract(down_bytes(trainer), down_bytes(expected))
    assert (more > 0).tolist() == [False, False, True]
    said = [r.getMessage() for r in caplog.records if "is not what was written there" in r.getMessage()]
    assert len(said) == (name in UNREADABLE)
    assert all(text.startswith("client `1`: `") for text in said)


def test_a_folder_that_cannot_be_written_to_costs_one_warning_for_each_client(federate, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        trainer = federate(tmp_path / "file", restarts=False)
    said = sorted(r.getMessage() for r in caplog.records if "in memory alone" in r.getMessage())
    assert [text[:42] for text in said] == [f"client `{i}`: its state cannot be written to" for i in "012"]
    assert down_bytes(trainer) == down_bytes(federate(False, restarts=False))
