"""Telling loggers, callbacks and the user how a fit goes, and how it ended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.server.record import RoundRecord, why_void
from lightning_fl_ext.server.screening.rejection import Reason, summary_lines
from lightning_fl_ext.server.stopping import ending_on_sigterm
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from lightning_fl_ext.server.durability.logged_rounds import LoggedRounds
    from lightning_fl_ext.server.fit import FederatedFit

log = logging.getLogger(__name__)


@contextmanager
def reporting(trainer: FederatedFit) -> Iterator[None]:
    """Tell callbacks of an error and loggers of the end, and keep Flower's own narration out of the way.

    Args:
        trainer: Its callbacks and loggers.
    """
    narrator = logging.getLogger("flwr")
    level = narrator.level
    narrator.setLevel(logging.WARNING)
    try:
        with ending_on_sigterm():
            yield
            _each_logger(trainer, lambda logger: logger.finalize("success"))
    except BaseException as error:
        for callback in trainer.callbacks:
            try:
                callback.on_exception(trainer, error)
            except Exception:
                log.exception("%s.on_exception raised as well", type(callback).__name__)
        for logger in trainer.loggers:
            try:
                logger.finalize("failed")
            except Exception:
                log.exception("%s.finalize raised as well", type(logger).__name__)
        raise
    finally:
        narrator.setLevel(level)


def log_record(trainer: FederatedFit, record: RoundRecord, logged: LoggedRounds | None) -> None:
    """Hand a round's metrics to the loggers that do not have it yet; without ``logged``, to all.

    Raises:
        LightningFLError: A logger raised; the message names it and the round.
    """

    def hand_over(logger: Any) -> None:
        if logged is None or logged.take(logger, record.server_round):
            logger.log_metrics(dict(record.metrics), step=record.server_round)
            logger.save()

    _each_logger(trainer, hand_over)


def warn_of(trainer: FederatedFit, record: RoundRecord) -> None:
    """Say in the log who was left out of a round, and that it is void if it is."""
    for line in summary_lines(r for r in record.rejected if r.reason is not Reason.IDLE):
        log.warning("%s", shown(line, 2000))
    if not record.metrics:
        log.warning(
            "nothing was measured: the strategy asks no client to evaluate (`fraction_evaluate`), or the"
            " clients' `validation_step` or `test_step` logs nothing"
        )
    if record.void:
        log.warning("round %d is void, the model stays: %s", record.server_round, _why(trainer, record))


def refuse_if_all_void(trainer: FederatedFit) -> None:
    """Refuse to end a run as if all were well, though no round of it, or none but the first, has counted.

    Raises:
        LightningFLError: Every round in which clients were asked to train was void; or of several, every one
            after the first.
    """
    asked = [record for record in trainer.rounds if record.sampled]
    later = asked if asked and asked[0].void else asked[1:]
    if not later or not all(record.void for record in later):
        return
    last = later[-1]
    left_out = f" In it: {'; '.join(summary_lines(last.rejected)[:3])}." if last.rejected else ""
    what = f"none of the {len(asked)} round(s) counts, and the model is the one the run began with"
    if later is not asked:
        first = asked[0].server_round
        what = f"no round after round {first} counts, and the model is that of round {first}"
    raise LightningFLError(f"{what}. Round {last.server_round} is void: {_why(trainer, last)}.{left_out}")


def _why(trainer: FederatedFit, record: RoundRecord) -> str:
    return why_void(record, trainer.min_accepted, trainer.strategy)


def _each_logger(trainer: FederatedFit, do: Callable[[Any], None]) -> None:
    for logger in trainer.loggers:
        try:
            do(logger)
        except Exception as error:
            raise LightningFLError(
                f"logger {type(logger).__name__} raised in round {trainer.current_round}: {described(error)}"
            ) from error
