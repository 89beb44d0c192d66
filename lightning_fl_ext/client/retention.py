"""Which epochs of a fit to keep, which is best, and what their mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import EpochResult


@dataclass(frozen=True)
class Retention:
    """Keeps the last epochs and, besides, the best one by a metric.

    Args:
        keep: ``"all"``, ``"last"`` or a number of epochs.
        monitor: Metric of the best epoch; None if no epoch is kept for being best.
        mode: Whether its ``"min"`` or ``"max"`` is best.

    Raises:
        ValueError: An argument is not one of the above.

    Example:
        >>> losses = [0.5, 0.3, 0.4, 0.6]
        >>> epochs = [EpochResult({}, 8, epoch=e, metrics={"loss": v}) for e, v in enumerate(losses)]
        >>> [r.epoch for r in Retention("last", monitor="loss").surplus(epochs)]
        [0, 2]
        >>> Retention(2, monitor="loss").best(epochs).epoch
        1
    """

    keep: int | str
    monitor: str | None = None
    mode: str = "min"

    def __post_init__(self) -> None:
        number = isinstance(self.keep, int) and not isinstance(self.keep, bool) and self.keep >= 1
        if self.keep not in ("all", "last") and not number:
            raise ValueError(f"`keep` must be 'all', 'last' or a number from 1. Got {self.keep!r}.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max'. Got {self.mode!r}.")

    def check(self, result: EpochResult) -> None:
        """Check that an epoch can be told better or worse.

        Raises:
            LightningFLError: It has not logged the monitored metric.
        """
        if self.monitor is not None and self.monitor not in result.metrics:
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
        best = self.best(results) if self.monitor is not None else None
        return [result for result in results[:-newest] if result is not best]

    def best(self, results: Sequence[EpochResult]) -> EpochResult:
        """Give the best of the results by the monitored metric; the earliest of equals, NaN last."""

        def rank(result: EpochResult) -> tuple[bool, float]:
            value = result.metrics[str(self.monitor)]
            return math.isnan(value), value if self.mode == "min" else -value

        return min(results, key=rank)


def mean(results: Sequence[EpochResult]) -> dict[str, NDArray[Any]]:
    """Give the exact mean over epochs' weights, weighted by their examples.

    Args:
        results: At least one, of one model.
    """
    from lightning_fl_ext.aggregation import ExactMean

    total = ExactMean(results[0].arrays)
    for result in results:
        total.add(result.arrays, result.num_examples)
    return total.result()
