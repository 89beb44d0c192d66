"""Which epochs' results a fit keeps, and where."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from lightning_fl_ext.client.spool import write_result
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import EpochResult


class Retention:
    """Keeps the last epochs and, by a metric, the best one.

    Args:
        keep: ``"all"``, ``"last"`` or a number of epochs.
        monitor: Metric of the best epoch, which is kept besides; None to keep none.
        mode: ``"min"`` or ``"max"``.
        spool_dir: Folder for the results of each fit; None to keep them in memory.

    Raises:
        ValueError: An argument is not one of the above.
    """

    def __init__(self, keep: str | int, monitor: str | None, mode: str, spool_dir: str | None) -> None:
        if keep not in ("all", "last") and not (isinstance(keep, int) and keep is not True and keep >= 1):
            raise ValueError(f"`keep` must be 'all', 'last' or a number from 1. Got {keep!r}.")
        if mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max'. Got {mode!r}.")
        self._limit = sys.maxsize if keep == "all" else 1 if keep == "last" else int(keep)
        self._monitor = monitor
        self._mode = mode
        self._spool_dir = spool_dir
        self._folder: Path | None = None
        self._best: EpochResult | None = None
        self.results: list[EpochResult] = []

    def start(self) -> None:
        """Forget the fit before; with a spool, open a new folder in it."""
        self.results, self._best, self._folder = [], None, None
        if self._spool_dir is not None:
            root = Path(self._spool_dir)
            root.mkdir(parents=True, exist_ok=True)
            self._folder = root / f"fit-{sum(1 for _ in root.glob('fit-*')):04d}"

    def add(self, result: EpochResult) -> None:
        """Keep a new epoch, and let go of those that are no longer wanted."""
        if self._monitor is not None and self._is_better(result):
            self._best = result
        if self._folder is not None:
            self._folder.mkdir(exist_ok=True)
            spooled = write_result(self._folder / f"epoch-{result.epoch:05d}.safetensors", result)
            self._best = spooled if self._best is result else self._best
            result = spooled
        self.results.append(result)
        surplus = [r for r in self.results if r is not self._best]
        for old in surplus[: max(0, len(surplus) - self._limit)]:
            self.results.remove(old)
            if self._folder is not None:
                (self._folder / f"epoch-{old.epoch:05d}.safetensors").unlink()

    def best(self) -> EpochResult:
        """Give the best epoch by the monitored metric."""
        if self._best is None:
            raise LightningFLError(f"`submit='best'`: no epoch logged `{self._monitor}`.")
        return self._best

    def mean(self) -> dict[str, NDArray[Any]]:
        """Give the exact mean over the kept epochs, weighted by their examples."""
        from lightning_fl_ext.aggregation import ExactMean

        mean = ExactMean(self.results[0].arrays)
        for result in self.results:
            mean.add(result.arrays, result.num_examples)
        return mean.result()

    def _is_better(self, result: EpochResult) -> bool:
        assert self._monitor is not None
        if self._monitor not in result.metrics:
            raise LightningFLError(
                f"`monitor={self._monitor!r}` was not logged in epoch {result.epoch}. Logged were: "
                + (", ".join(sorted(result.metrics)) or "none")
            )
        value = result.metrics[self._monitor]
        if self._best is None or math.isnan(self._best.metrics[self._monitor]):
            return True
        best = self._best.metrics[self._monitor]
        return value < best if self._mode == "min" else value > best
