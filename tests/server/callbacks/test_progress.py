"""The line of a round: what is in it, in which order, and where it may break; and who is waited for."""

import io

import pytest
from rich.console import Console

from lightning_fl_ext import RoundProgressBar
from lightning_fl_ext.metric_names import foremost, without_twins
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

LOGGED = (
    *("train_loss", "train_loss_step", "train_loss_epoch", "fit_val_loss", "clients_accepted", "bytes_up"),
    *("val_loss", "val_MulticlassF1Score", "val_MulticlassAUROC", "val_accuracy"),
)


def lines_of(toy, width, terminal=True, names=LOGGED, **options):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, no_color=True)
    trainer = toy.make_trainer(
        callbacks=[RoundProgressBar(console, **options)], enable_progress_bar=True, max_rounds=1
    )

    def metrics(partition, server_round):
        return {name: 0.123456 for name in names if name not in ("clients_accepted", "bytes_up")}

    trainer.fit(toy.Net(), toy.make_grid(3, app=toy.make_app(metrics=metrics)))
    text = out.getvalue().split("\x1b[?25h")[0] if terminal else out.getvalue()
    plain = [
        line for line in text.replace("\x1b[1A", "\n").replace("\x1b[2K", "").split("\n") if "0.1235" in line
    ]
    return [line.replace("\r", "").rstrip() for line in plain]


def test_scores_of_evaluations_come_first_and_nothing_is_shown_twice():
    assert set(foremost(LOGGED)[:3]) == {"val_accuracy", "val_MulticlassF1Score", "val_MulticlassAUROC"}
    assert foremost(LOGGED)[3:] == ["val_loss"]
    assert foremost(LOGGED, "train_loss")[0] == "train_loss"
    assert foremost(LOGGED, count=99)[4:] == ["fit_val_loss", "train_loss"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("loss", "loss_step", "loss_epoch"), ["loss"]),
        (("loss_step", "loss_epoch"), ["loss_epoch"]),
        (("loss_step", "time_epoch"), ["loss_step", "time_epoch"]),
        (("_step", "_epoch"), ["_epoch"]),
    ],
)
def test_what_lightning_logs_for_steps_and_epochs_is_one_quantity(names, kept):
    assert without_twins(names) == kept


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_line_is_wider_than_the_terminal_nor_breaks_between_a_name_and_its_value(toy, width):
    lines = lines_of(toy, width)
    assert all(len(line) <= width for line in lines)
    pairs = [pair.strip() for line in lines for pair in line.split("  ") if "0.1235" in pair]
    assert pairs == [f"{name} 0.1235" for name in foremost(LOGGED) if name != "val_loss"]


def test_off_a_terminal_a_round_is_one_line(toy):
    assert len(lines_of(toy, 80, terminal=False)) == 1


def test_metrics_that_were_named_are_shown_in_that_order(toy):
    (line,) = lines_of(toy, 120, terminal=False, metrics=("train_loss_step", "val_accuracy"))
    assert line.endswith("train_loss_step 0.1235  val_accuracy 0.1235")


@pytest.fixture
def bar(toy):
    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out, force_terminal=True, width=80))
    trainer = toy.make_trainer(callbacks=[progress], enable_progress_bar=True)
    progress.on_fit_start(trainer)
    yield progress, trainer
    progress.on_exception(trainer, ValueError())


def waiting(progress):
    task = next(task for task in progress._progress.tasks if task.description == "replies")
    return int(task.completed), task.fields["waiting"]


def test_the_bar_names_the_clients_that_are_waited_for(bar):
    progress, trainer = bar
    progress.on_messages(trainer, ["a", "b", "c", "[bold]d"])
    assert waiting(progress) == (0, "")
    progress.on_reply(trainer, ClientUpdate({}, 3, client_id="b"))
    assert waiting(progress) == (1, "waiting for [bold]d, a and 1 more")
    progress.on_reply(trainer, Rejection("a", 1, Reason.NO_REPLY))
    assert waiting(progress) == (2, "waiting for [bold]d, c")
    progress.on_messages(trainer, ["a", "b"])
    progress.on_evaluation_reply(trainer, ClientUpdate({}, 3, client_id="a"))
    assert waiting(progress) == (1, "waiting for b")
    progress.on_evaluation_reply(trainer, ClientUpdate({}, 3, client_id="b"))
    assert waiting(progress) == (2, "")


def test_what_is_said_of_a_client_besides_does_not_count_as_a_reply(bar):
    progress, trainer = bar
    progress.on_messages(trainer, ["a", "b"])
    for key in ("f1", "loss"):
        progress.on_reply(trainer, Rejection("a", 1, Reason.METRIC, key))
    progress.on_reply(trainer, ClientUpdate({}, 3, client_id="a"))
    assert waiting(progress) == (1, "waiting for b")


def test_replies_of_which_the_server_sees_nothing_are_counted(bar):
    progress, trainer = bar
    progress.on_messages(trainer, ["a", "b", "c"])
    progress.on_reply(trainer, None)
    progress.on_reply(trainer, None)
    assert waiting(progress) == (2, "")
