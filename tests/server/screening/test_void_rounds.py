"""Rounds in which too few updates count, and what is said of those left out."""

import math

import numpy as np
import pytest
from _altering import BAD, altering
from _bad_updates import STREAMED_AND_COLLECTED, config, fit, metric, put

from lightning_fl_ext import RoundCheckpoint, RoundLedger, digest, verify_ledger
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server import BadUpdateError


def test_on_bad_update_raise_stops_with_the_reason(toy):
    with pytest.raises(
        BadUpdateError, match=r"client `02`, round 1: not-finite, `weight`.*\[1, 2\].*on_bad_update"
    ):
        fit(toy, None, altering(toy, put("weight", (1, 2), np.nan)), on_bad_update="raise")


@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
def test_fewer_good_updates_than_min_accepted_leave_the_model_as_it_is(toy, make_strategy, name):
    def spoil_in_round_2(instruction, reply):
        second = toy.is_train(instruction) and instruction.content["config"]["server-round"] == 2
        return altering(toy, put("bias", 0, np.nan))(instruction, reply) if second else reply

    first, second, third = fit(
        toy, make_strategy(name), spoil_in_round_2, min_accepted=5, max_rounds=3
    ).rounds
    assert [first.void, second.void, third.void] == [False, True, False]
    assert first.digest == second.digest != third.digest
    assert not fit(toy, make_strategy(name), spoil_in_round_2, min_accepted=4).rounds[1].void


@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
def test_a_run_of_which_the_first_round_alone_counts_ends_in_an_error(toy, make_strategy, name):
    def spoil_later(instruction, reply):
        later = toy.is_train(instruction) and instruction.content["config"]["server-round"] > 1
        return altering(toy, put("bias", 0, np.nan))(instruction, reply) if later else reply

    said = r"no round after round 1 counts, and the model is that of round 1\. Round 3 is void: 4 of 5"
    with pytest.raises(LightningFLError, match=said):
        fit(toy, make_strategy(name), spoil_later, min_accepted=5, max_rounds=3)


@pytest.mark.parametrize("name", STREAMED_AND_COLLECTED)
def test_a_run_of_void_rounds_alone_ends_in_an_error_with_its_rounds_kept(toy, make_strategy, name, tmp_path):
    options = {"callbacks": [RoundCheckpoint(), RoundLedger()], "default_root_dir": tmp_path}
    trainer = toy.make_trainer(make_strategy(name), min_accepted=5, **options)
    faults = altering(toy, put("bias", 0, np.nan))
    with pytest.raises(
        LightningFLError,
        match=r"none of the 2 round\(s\) counts, and the model is the one the run began with. Round 2 is"
        r" void: 4 of 5 updates count, `min_accepted` is 5. In it: left out client `02`, round 2: not-finite",
    ):
        trainer.fit(toy.Net(), toy.make_grid(faults=faults))
    assert [record.void for record in trainer.rounds] == [True, True]
    start = {key: tensor.numpy() for key, tensor in toy.Net().state_dict().items()}
    assert {record.digest for record in trainer.rounds} == {digest(start)}
    report = verify_ledger(tmp_path)
    assert (report.ok, report.rounds, report.finished) == (True, 2, False)
    more = toy.make_trainer(make_strategy(name), min_accepted=5, max_rounds=3, **options)
    result = more.fit(toy.Net(), toy.make_grid(), ckpt_path="last")
    assert [record.void for record in result.rounds] == [True, True, False]


def test_a_run_without_any_examples_names_the_idle_clients(toy):
    def nothing(instruction, reply):
        return metric("num-examples", 0)(toy, reply) if toy.is_train(instruction) else reply

    said = r"is 1\. In it: clients `00`, .*, round 2: idle: no training examples\.$"
    with pytest.raises(LightningFLError, match=said):
        fit(toy, None, nothing)


def test_the_summary_says_who_was_left_out_and_why(toy):
    result = fit(toy, None, altering(toy, put("bias", 0, np.nan)))
    assert str(result).splitlines()[:2] == [
        "2 round(s), 0 void, 2 left out",
        "  left out client `02`, round 1: not-finite, `bias`: expected finite values, got nan at index [0]",
    ]


def test_what_is_to_be_said_of_many_clients_is_said_once(toy, caplog):
    def spoil(instruction, reply):
        return (
            put("bias", 0, np.nan)(toy, reply) if toy.is_train(instruction) and reply.has_content() else reply
        )

    trainer = toy.make_trainer(max_rounds=1)
    with pytest.raises(
        LightningFLError, match=r"In it: left out clients `00`, .* and 2 more, round 1: not-finite"
    ):
        trainer.fit(toy.Net(), toy.make_grid(7, faults=spoil))
    assert len(trainer.rounds[0].rejected) == 7
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line == (
        "left out clients `00`, `01`, `02`, `03`, `04` and 2 more, round 1: not-finite, `bias`:"
        " expected finite values, got nan at index [0]"
    )


def test_what_is_left_out_of_an_evaluation_is_not_taken_for_an_update(toy):
    def spoil(instruction, reply):
        evaluation = instruction.metadata.message_type == "evaluate" and toy.client_of(reply) == BAD
        return metric("val_loss", math.nan)(toy, reply) if evaluation else reply

    result = fit(toy, None, spoil, max_rounds=1)
    (record,) = result.rounds
    assert BAD in record.accepted
    assert record.metrics["clients_rejected"] == 0.0
    assert str(record.rejected[0]) == (
        "client `02`, round 1, evaluation: not-finite, `val_loss`: expected a finite metric, got nan"
    )
    with pytest.raises(BadUpdateError, match="client `02`, round 1, evaluation: not-finite"):
        fit(toy, None, spoil, on_bad_update="raise")


def test_what_a_client_writes_neither_fills_the_log_nor_controls_the_terminal(toy):
    escape = config("server-round", "\x1b[2J" + "x" * 4000)
    (rejection,) = fit(toy, None, altering(toy, escape), max_rounds=1).rejected
    assert rejection.got.startswith("\\x1b[2J")
    assert len(rejection.got) == 400
