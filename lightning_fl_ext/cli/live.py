"""The report while a run goes on, for a browser that stays open."""

from __future__ import annotations

from pathlib import Path

from lightning_fl_ext.report import read_history, render_report
from lightning_fl_ext.server import RoundCallback
from lightning_fl_ext.server.fit import FederatedFit

SECONDS = 5


class LiveReport(RoundCallback):
    """Writes ``report.html`` into the run's folder after each round; the page looks again by itself.

    Place it after the :class:`~lightning_fl_ext.server.RoundLedger` that it reads.
    """

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: writes the page."""
        self._write(trainer.default_root_dir, SECONDS)

    def on_fit_end(self, trainer: FederatedFit) -> None:
        """Called when all rounds are done: writes the page, which stays."""
        self._write(trainer.default_root_dir, 0)

    @staticmethod
    def _write(folder: Path, refresh: int) -> None:
        (folder / "report.html").write_text(render_report(read_history(folder), refresh), encoding="utf-8")
