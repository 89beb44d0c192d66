"""Progress and early stopping; checkpoints and the ledger have files of their own."""

import io
import math

import pytest
from rich.console import Console

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LightningFLError,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundProgressBar,
)
from lightning_fl_ext.server import CallbackError


def drop_one(toy, when=1):
    def faults(instruction, reply):
        gone = toy.is_train(instruction) and toy.client_of(reply) == "01"
        return None if gone and instruction.content["config"]["server-round"] == when else reply

    return faults


def show(toy, *, terminal, faults=None, **options):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    trainer = toy.make_trainer(callbacks=[RoundProgressBar(console)], enable_progress_bar=True, **options)
    result = trainer.fit(toy.Net(), toy.make_grid(3, faults=faults))
    return out.getvalue(), result


def test_off_a_terminal_there_is_a_plain_line_for_each_round_and_each_left_out(toy):
    text, result = show(toy, terminal=False, faults=drop_one(toy))
    losses = [(r.metrics["train_loss"], r.metrics["val_loss"]) for r in result.rounds]
    assert text.splitlines() == [
        f"round 1/2  clients 2/3  val_loss {losses[0][1]:.4g}  train_loss {losses[0][0]:.4g}",
        "  left out client `01`, round 1: no-reply: Node unavailable",
        f"round 2/2  clients 3/3  val_loss {losses[1][1]:.4g}  train_loss {losses[1][0]:.4g}",
        f"digest of the final model: {result.digest}",
    ]


def test_what_the_server_measured_before_the_first_round_is_the_first_line(toy):
    out = io.StringIO()
    options = {"callbacks": RoundProgressBar(Console(file=out)), "enable_progress_bar": True}
    toy.make_trainer(**options).fit(toy.Net(), toy.make_grid(2), evaluate=lambda model: {"x": 0.5})
    assert out.getvalue().splitlines()[0] == "round 0/2  server_x 0.5"


def test_a_name_that_no_metric_has_is_pointed_out_once(toy):
    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out), metrics=("val_los", "val_loss"))
    toy.make_trainer(callbacks=progress, enable_progress_bar=True).fit(toy.Net(), toy.make_grid(2))
    lines = out.getvalue().splitlines()
    (pointed_out,) = [line for line in lines if "val_los'" in line]
    assert pointed_out.startswith("  no metric ['val_los'] to show; there are [")
    assert "'val_loss'" in pointed_out


def test_on_a_terminal_there_is_a_bar_over_rounds_and_one_over_replies(toy):
    text, result = show(toy, terminal=True)
    assert "rounds" in text
    assert "replies" in text
    assert "\x1b[" in text
    assert f"digest of the final model: {result.digest}" in text


def test_a_void_round_is_marked(toy):
    text, _ = show(toy, terminal=False, faults=drop_one(toy), min_accepted=3)
    assert text.splitlines()[0].endswith("[void, the model stays: 2 of 3 updates count, `min_accepted` is 3]")


def test_the_bars_are_taken_away_when_the_fit_fails(toy):
    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out, force_terminal=True, width=80))
    stopping = RoundEarlyStopping("nope")
    trainer = toy.make_trainer(callbacks=[progress, stopping], enable_progress_bar=True)
    with pytest.raises(CallbackError):
        trainer.fit(toy.Net(), toy.make_grid(3))
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_the_progress_bar_is_there_unless_switched_off():
    assert [type(c) for c in FederatedTrainer().callbacks] == [RoundProgressBar]
    assert FederatedTrainer(enable_progress_bar=False).callbacks == []
    own = RoundProgressBar()
    assert FederatedTrainer(callbacks=own).callbacks == [own]


@pytest.mark.parametrize(
    ("mode", "losses", "rounds"),
    [
        ("min", [3, 2, 2, 2, 1], 4),
        ("min", [3, 2, 1, 0.5, 0.2], 5),
        ("max", [1, 2, 3, 2, 2], 5),
        ("max", [3, 2, 1, 9, 9], 3),
        ("min", [3, math.nan, math.nan, 1, 1], 3),
    ],
)
def test_a_run_stops_when_the_metric_no_longer_improves(toy, mode, losses, rounds):
    stopping = RoundEarlyStopping("server_loss", mode=mode, patience=2)
    values = iter([0, *losses])
    result = toy.make_trainer(callbacks=stopping, max_rounds=5).fit(
        toy.Net(), toy.make_grid(2), evaluate=lambda model: {"loss": next(values)}
    )
    assert len(result.rounds) - 1 == rounds


def test_a_small_improvement_does_not_count(toy):
    stopping = RoundEarlyStopping("server_loss", patience=1, min_delta=0.5)
    values = iter([9.0, 3.0, 2.0, 1.9, 1.0])
    result = toy.make_trainer(callbacks=stopping, max_rounds=4).fit(
        toy.Net(), toy.make_grid(2), evaluate=lambda model: {"loss": next(values)}
    )
    assert result.rounds[-1].server_round == 3


def test_a_metric_that_is_not_there_is_named_with_those_that_are(toy):
    with pytest.raises(CallbackError, match=r"RoundEarlyStopping.on_round_end.*no metric `nope`.*'val_loss'"):
        toy.make_trainer(callbacks=RoundEarlyStopping("nope")).fit(toy.Net(), toy.make_grid(2))


def test_a_void_round_without_the_metric_is_no_improvement(toy):
    def vanish(instruction, reply):
        late = toy.is_train(instruction) and instruction.content["config"]["server-round"] > 1
        return None if late else reply

    stopping = RoundEarlyStopping("train_loss", patience=2)
    trainer = toy.make_trainer(callbacks=stopping, max_rounds=9)
    with pytest.raises(LightningFLError, match="no round after round 1 counts"):
        trainer.fit(toy.Net(), toy.make_grid(2, faults=vanish))
    assert [record.void for record in trainer.rounds] == [False, True, True]


# The trainer's metric


def measured(toy, losses, callbacks=(), **options):
    """A run in which the server measures these losses, from before the first round on."""
    values = iter([math.nan, *losses])
    options = {"max_rounds": len(losses), "callbacks": callbacks, **options}
    trainer = toy.make_trainer(**options)
    trainer.fit(toy.Net(), toy.make_grid(2), evaluate=lambda model: {"loss": next(values)})
    return trainer


@pytest.mark.parametrize(
    ("mode", "losses", "best"),
    [
        ("min", [3, 1, 2], (2, 1)),
        ("max", [1, 3, 3], (2, 3)),
        ("min", [math.nan, 4, math.nan], (2, 4)),
        ("min", [math.nan, math.nan], (None, None)),
    ],
)
def test_the_result_names_the_best_round_of_the_monitored_metric(toy, mode, losses, best):
    result = measured(toy, losses, monitor="server_loss", mode=mode).result
    assert (result.best_round, result.best_score) == best
    assert (f"best round: {best[0]}, server_loss {best[1]}" in str(result)) == (best[0] is not None)


def test_without_a_monitored_metric_there_is_no_best_round(toy):
    result = measured(toy, [1, 2]).result
    assert (result.best_round, result.best_score) == (None, None)
    assert "best" not in str(result)


def test_callbacks_go_by_the_trainers_metric_unless_they_have_one_of_their_own(toy, tmp_path):
    """The loss falls in all rounds, and is at its largest in the first."""
    options = {"monitor": "server_loss", "mode": "max", "default_root_dir": tmp_path}
    kept = RoundCheckpoint(keep_last=1)
    trainer = measured(toy, [5, 4, 3, 2], [RoundEarlyStopping(patience=2), kept], **options)
    assert trainer.current_round == 3
    assert kept.best_path.name == "round-00001"

    own = RoundEarlyStopping("train_loss", patience=1, min_delta=9.0)
    trainer = measured(toy, [1, 2, 3, 4], own, **options)
    assert trainer.current_round == 2, "their metric is another, and falls by less than 9"
    stubborn = RoundEarlyStopping("server_loss", mode="min", patience=1)
    trainer = measured(toy, [1, 2, 3, 4], stubborn, **options)
    assert trainer.current_round == 2, "a mode of their own holds"
    agreeing = RoundEarlyStopping("server_loss", patience=1)
    assert measured(toy, [1, 2, 3, 4], agreeing, **options).current_round == 4, "the metric's mode is known"


def test_a_misspelt_metric_ends_the_run_after_the_first_round_which_is_kept(toy, tmp_path):
    callbacks = [RoundEarlyStopping(), RoundCheckpoint()]
    options = {"callbacks": callbacks, "default_root_dir": tmp_path, "max_rounds": 3}
    trainer = toy.make_trainer(monitor="val_los", **options)
    with pytest.raises(LightningFLError, match=r"no metric `val_los` to monitor; there are .*'val_loss'"):
        trainer.fit(toy.Net(), toy.make_grid(2))
    assert trainer.current_round == 1
    again = toy.make_trainer(monitor="val_loss", **options)
    assert len(again.fit(toy.Net(), toy.make_grid(2), ckpt_path="last").rounds) == 3
    assert again.rounds[0] == trainer.rounds[0]


def test_a_metric_that_is_not_measured_in_every_round_may_be_monitored(toy):
    class Seldom(ExactFedAvg):
        def configure_evaluate(self, server_round, *args):
            return super().configure_evaluate(server_round, *args) if server_round % 2 else []

    trainer = toy.make_trainer(Seldom(), monitor="val_loss", max_rounds=4)
    result = trainer.fit(toy.Net(), toy.make_grid(2))
    assert ["val_loss" in record.metrics for record in result.rounds] == [True, False, True, False]
    assert result.best_round in (1, 3)


def test_early_stopping_without_any_metric_says_where_to_name_one(toy):
    with pytest.raises(CallbackError, match=r"RoundEarlyStopping\('val_loss'\).*FederatedTrainer\(monitor="):
        measured(toy, [1], RoundEarlyStopping())


def test_a_resumed_run_knows_the_best_round_before(toy, tmp_path):
    options = {"monitor": "server_loss", "default_root_dir": tmp_path}
    measured(toy, [1, 2], RoundCheckpoint(keep_last=1), **options)
    kept = RoundCheckpoint(keep_last=1)
    trainer = toy.make_trainer(max_rounds=4, callbacks=kept, **options)
    result = trainer.fit(toy.Net(), toy.make_grid(2), evaluate=lambda model: {"loss": 9.0}, ckpt_path="last")
    assert (result.best_round, result.best_score) == (1, 1.0)
    assert kept.best_path == tmp_path / "checkpoints" / "round-00001"
    assert kept.best_path.is_dir()


def test_the_progress_shows_the_monitored_metric_first_and_the_best_round_at_the_end(toy):
    def metrics(partition, server_round):
        return {f"train_{name}": float(server_round) for name in "abcdz"}

    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out, width=200, highlight=False))
    trainer = toy.make_trainer(callbacks=[progress], monitor="train_z", mode="max", enable_progress_bar=True)
    trainer.fit(toy.Net(), toy.make_grid(2, app=toy.make_app(metrics=metrics)))
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("round 1/2  clients 2/2  train_z 1  ")
    assert lines[-2] == "best round: 2, train_z 2"


def test_the_trainers_mode_is_checked():
    with pytest.raises(ValueError, match=r"`mode` must be 'min' or 'max'\. Got 'best'"):
        FederatedTrainer(mode="best")


@pytest.mark.parametrize("wrong", [{"mode": "least"}, {"patience": 0}])
def test_wrong_arguments_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}`"):
        RoundEarlyStopping("loss", **wrong)


def test_a_score_that_is_monitored_for_its_smallest_value_is_doubted(toy, caplog):
    def doubts(monitor, mode, *callbacks):
        caplog.clear()
        trainer = toy.make_trainer(monitor=monitor, mode=mode, callbacks=list(callbacks), max_rounds=1)
        trainer.fit(
            toy.Net(), toy.make_grid(2), evaluate=lambda _: {"a_f1": 0.5, "b_f1": 0.5, "a_error": 1.0}
        )
        return [record.message for record in caplog.records if "`monitor=" in record.message]

    assert doubts("server_a_f1", "max", RoundEarlyStopping("server_a_f1")) == [], (
        "the trainer's mode is known"
    )
    assert doubts("server_a_error", "min") == []
    (doubt,) = doubts("server_a_f1", "min", RoundEarlyStopping())
    assert doubt.startswith("`monitor='server_a_f1'` with `mode='min'` goes by its smallest value.")
    assert doubt.endswith("give `mode='max'`.")
    (doubt,) = doubts("server_a_error", "min", RoundEarlyStopping("server_b_f1"))
    assert "'server_b_f1'" in doubt
