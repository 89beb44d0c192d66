"""`RoundCheckpoint`: after each round, everything needed to go on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_fl_ext.arguments import choice, metric_name, whole_number
from lightning_fl_ext.files import CHECKPOINTS, list_checkpoints, make_folder, remove_folder
from lightning_fl_ext.server.callbacks.base import RoundCallback, monitored
from lightning_fl_ext.server.durability.checkpoint import CheckpointError, save_checkpoint
from lightning_fl_ext.server.durability.lightning_checkpoint import lightning_checkpoint
from lightning_fl_ext.server.durability.strategy_state import encode_strategy
from lightning_fl_ext.server.record import find_best, require_metric

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit

log = logging.getLogger(__name__)


class RoundCheckpoint(RoundCallback):
    """Writes a checkpoint after every round, in one step, and keeps the last ones and the best.

    A checkpoint is the folder ``<default_root_dir>/checkpoints/round-NNNNN`` with the model, the strategy's
    and the callbacks' state, and the records of all rounds, as safetensors and JSON. Go on from the newest
    with ``fit(..., ckpt_path="last")``.

    Args:
        keep_last: How many of the newest to keep; None for all.
        monitor: Metric by whose value the best round is kept besides. Default: that of the trainer, if it
            has one.
        mode: Whether a ``"min"`` or ``"max"`` of ``monitor`` is best. Default: that of the trainer for its
            own metric, else ``"min"``.
        lightning_checkpoint: Whether each folder holds ``model.ckpt`` besides, which
            ``LitModule.load_from_checkpoint`` takes, hyper-parameters and all.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is not one of the above.

    Attributes:
        best_path: Folder of the best round so far, by ``monitor``.

    Example:
        >>> RoundCheckpoint(keep_last=3, monitor="val_acc", mode="max").best_path
    """

    def __init__(
        self,
        keep_last: int | None = 2,
        monitor: str | None = None,
        mode: str | None = None,
        lightning_checkpoint: bool = False,
    ) -> None:
        self.keep_last = None if keep_last is None else whole_number("keep_last", keep_last, 1)
        self.monitor = None if monitor is None else metric_name(monitor)
        self.mode = None if mode is None else choice("mode", mode, ("min", "max"))
        self.lightning_checkpoint = bool(lightning_checkpoint)
        self.best_path: Path | None = None

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round.

        Raises:
            CheckpointError: The folder holds the checkpoints of another run.
            LightningFLError: The strategy has state that cannot be saved, or the folder cannot be written to.
            ExportError: The model cannot be written in Lightning's form, and is to be.
        """
        if self.lightning_checkpoint:
            lightning_checkpoint(trainer.model)  # complains now rather than after the first round
        encode_strategy(trainer.strategy)  # complains now rather than after the first round
        root = trainer.default_root_dir / CHECKPOINTS
        later = [(number, path) for number, path in list_checkpoints(root) if number > trainer.current_round]
        if later and trainer.current_round == 0:
            raise CheckpointError(
                f"`{root}` holds the checkpoints of a run of {later[-1][0]} round(s). Go on with it by"
                " `fit(..., ckpt_path='last')`, or choose another `default_root_dir`."
            )
        for _, path in later:
            log.warning("going on after round %d: removing the later `%s`", trainer.current_round, path.name)
            remove_folder(path)
        make_folder(root)
        self.best_path = self._find_best(trainer)

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: writes, then removes what is no longer kept.

        Raises:
            LightningFLError: No round so far had such a metric as ``monitor``; the checkpoint is there all
                the same.
        """
        path = self._path(trainer, trainer.current_round)
        save_checkpoint(trainer, path, self.lightning_checkpoint)
        if self.monitor is not None:
            require_metric(trainer.rounds, self.monitor)
        self.best_path = self._find_best(trainer)
        if self.keep_last is not None:
            for _, path in list_checkpoints(trainer.default_root_dir / CHECKPOINTS)[: -self.keep_last]:
                if path != self.best_path:
                    remove_folder(path)

    def _find_best(self, trainer: FederatedFit) -> Path | None:
        monitor, mode = monitored(trainer, self.monitor, self.mode)
        best = None if monitor is None else find_best(trainer.rounds, monitor, mode)
        path = None if best is None else self._path(trainer, best[0])
        return path if path is not None and path.exists() else None

    @staticmethod
    def _path(trainer: FederatedFit, number: int) -> Path:
        return trainer.default_root_dir / CHECKPOINTS / f"round-{number:05d}"
