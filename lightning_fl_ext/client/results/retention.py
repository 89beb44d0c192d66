"""Which epochs of a fit to keep, and which weights to hand in."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metric_names import doubt_of
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.results import Arrays, EpochResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Keeps the last epochs and, if the best one is to be handed in, that one besides.

    Args:
        keep: ``"all"``, ``"last"`` or a number of epochs.
        submit: What to hand in: the ``"last"`` weights, the kept epochs' ``"mean"``, or the ``"best"`` epoch.
        monitor: Metric of the best epoch.
        mode: Whether its ``"min"`` or ``"max"`` is best.

    Raises:
        ValueError: An argument is not one of the above.

    Example:
        >>> losses = [0.5, 0.3, 0.4, 0.6]
        >>> epochs = [EpochResult({}, 8, epoch=e, metrics={"loss": v}) for e, v in enumerate(losses)]
        >>> [r.epoch for r in Retention("last").surplus(epochs)]
        [0, 1, 2]
        >>> [r.epoch for r in Retention("last", "best", monitor="loss").surplus(epochs)]
        [0, 2]
    """

    keep: int | str
    submit: str = "last"
    monitor: str | None = None
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.submit not in ("last", "mean", "best"):
            raise ValueError(f"`submit` must be 'last', 'mean' or 'best'. Got {self.submit!r}.")
        if self.submit == "best" and self.monitor is None:
            raise ValueError("`submit='best'` needs a metric: pass `monitor=`, or choose another `submit`.")
        number = isinstance(self.keep, int) and not isinstance(self.keep, bool) and self.keep >= 1
        if self.keep not in ("all", "last") and not number:
            raise ValueError(f"`keep` must be 'all', 'last' or a number from 1. Got {self.keep!r}.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max'. Got {self.mode!r}.")
        if self.submit == "best" and (doubt := doubt_of(self.monitor, self.mode)):
            warn_once(log, "", doubt)

    def check(self, result: EpochResult) -> None:
        """Check that an epoch can be told better or worse.

        Raises:
            LightningFLError: It has not logged the monitored metric.
        """
        if self.submit == "best" and self.monitor not in result.metrics:
            raise LightningFLError(
                f"`monitor={self.monitor!r}` was not logged by the end of epoch {result.epoch}, when"
                " callbacks run (a module's own `on_train_epoch_end` runs later). Logged were: "
                + (", ".join(sorted(result.metrics)) or "none")
            )

    def surplus(self, results: Sequence[EpochResult]) -> list[EpochResult]:
        """List those of the results, given by epoch, that are no longer wanted."""
        if self.keep == "all":
            return []
        newest = 1 if self.keep == "last" else int(self.keep)
        best = self._best(results) if self.submit == "best" else None
        return [result for result in results[:-newest] if result is not best]

    def submitted(self, results: Sequence[EpochResult]) -> Arrays:
        """Give the weights to hand in, unless they are the last: the best epoch's, or the exact mean.

        Args:
            results: The kept epochs, at least one, by epoch.
        """
        if self.submit == "best":
            return self._best(results).arrays
        from lightning_fl_ext.aggregation import ExactMean

        total = ExactMean(results[0].arrays)
        for result in results:
            total.add(result.arrays, result.num_examples)
        return total.result()

    def _best(self, results: Sequence[EpochResult]) -> EpochResult:
        """Give the best of the results by the monitored metric; the earliest of equals, NaN last."""

        def rank(result: EpochResult) -> tuple[bool, float]:
            value = result.metrics[str(self.monitor)]
            return math.isnan(value), value if self.mode == "min" else -value

        return min(results, key=rank)
