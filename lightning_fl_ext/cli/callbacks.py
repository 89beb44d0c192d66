"""What the command line adds to a run: its settings in a file, and the report while it goes on."""

from __future__ import annotations

from pathlib import Path

from lightning_fl_ext.cli.config import to_toml
from lightning_fl_ext.cli.settings import RunSettings
from lightning_fl_ext.files import write_file
from lightning_fl_ext.report import read_history, render_report
from lightning_fl_ext.report.history import SETTINGS_FILE
from lightning_fl_ext.server import RoundCallback
from lightning_fl_ext.server.fit import FederatedFit

SECONDS = 5


class SettingsFile(RoundCallback):
    """Writes ``run.toml``, once the run has begun: what is refused leaves that of the run before.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called when the checkpoint to go on from has been accepted: writes the file."""
        write_file(trainer.default_root_dir / SETTINGS_FILE, to_toml(self.settings).encode())


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

    def on_exception(self, trainer: FederatedFit, exception: BaseException) -> None:
        """Called when the run is stopped, or fails: writes the page, which stays."""
        if trainer.rounds:
            self._write(trainer.default_root_dir, 0)

    @staticmethod
    def _write(folder: Path, refresh: int) -> None:
        write_file(folder / "report.html", render_report(read_history(folder), refresh).encode())
