"""`RoundEarlyStopping`: stops when a metric no longer improves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.arguments import choice, limit, metric_name, whole_number
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.callbacks.base import RoundCallback, monitored
from lightning_fl_ext.server.record import require_metric

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit


class RoundEarlyStopping(RoundCallback):
    """Stops the run when a metric has not improved for some rounds.

    A round without the metric, because it is void or its evaluations are missing, is one without improvement.

    Args:
        monitor: The metric. Default: that of the trainer.
        mode: Whether ``"min"`` or ``"max"`` is better. Default: that of the trainer for its own metric, else
            ``"min"``.
        patience: Rounds without improvement after which to stop.
        min_delta: What counts as an improvement.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is not one of the above.

    Example:
        >>> RoundEarlyStopping("val_loss", patience=5).patience
        5
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
    ) -> None:
        self.monitor = None if monitor is None else metric_name(monitor)
        self.mode = None if mode is None else choice("mode", mode, ("min", "max"))
        self.patience = whole_number("patience", patience, 1)
        self.min_delta = limit("min_delta", min_delta, zero=True) or 0.0
        self._best = math.inf
        self._waited = 0

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round: begins anew, or stops at once where a resumed run had stopped.

        Raises:
            LightningFLError: Neither this callback nor the trainer has a metric to monitor.
        """
        if monitored(trainer, self.monitor, self.mode)[0] is None:
            raise LightningFLError(
                "`RoundEarlyStopping` has no metric to go by: give it one, `RoundEarlyStopping('val_loss')`,"
                " or give the trainer one, `FederatedTrainer(monitor='val_loss')`"
            )
        if trainer.current_round == 0:
            self._best, self._waited = math.inf, 0
        trainer.should_stop = trainer.should_stop or self._waited >= self.patience

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: compares, and asks the trainer to stop.

        Raises:
            LightningFLError: No round so far had such a metric.
        """
        if self.monitor is not None:
            require_metric(trainer.rounds, self.monitor)
        monitor, mode = monitored(trainer, self.monitor, self.mode)
        value = trainer.rounds[-1].metrics.get(str(monitor), math.nan)
        value = value if mode == "min" else -value
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        trainer.should_stop = trainer.should_stop or self._waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Give the best value and how long it has stood."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self._best, self._waited = state.get("best", math.inf), state.get("waited", 0)
