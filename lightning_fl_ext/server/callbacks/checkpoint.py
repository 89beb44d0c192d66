"""`RoundCheckpoint`: after each round, everything needed to go on."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.checkpointing import CheckpointError, save_checkpoint
from lightning_fl_ext.server.files import CHECKPOINTS, list_checkpoints
from lightning_fl_ext.server.result import read_metric
from lightning_fl_ext.server.strategy_state import encode_strategy

if TYPE_CHECKING:
    from lightning_fl_ext.server.trainer import FederatedTrainer

log = logging.getLogger(__name__)


class RoundCheckpoint(RoundCallback):
    """Writes a checkpoint after every round, in one step, and keeps the last ones and the best.

    A checkpoint is the folder ``<default_root_dir>/checkpoints/round-NNNNN`` with the model, the strategy's
    and the callbacks' state, and the records of all rounds, as safetensors and JSON. Go on from the newest
    with ``fit(..., ckpt_path="last")``.

    Args:
        keep_last: How many of the newest to keep; None for all.
        monitor: Metric by whose value the best round is kept besides.
        mode: Whether a ``"min"`` or ``"max"`` of ``monitor`` is best.

    Raises:
        ValueError: An argument is not one of the above.

    Attributes:
        best_path: Folder of the best round so far, by ``monitor``.

    Example:
        >>> RoundCheckpoint(keep_last=3, monitor="val_acc", mode="max").best_path
    """

    def __init__(self, keep_last: int | None = 2, monitor: str | None = None, mode: str = "min") -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"`keep_last` must be at least 1, or None for all. Got {keep_last}.")
        if mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max'. Got {mode!r}.")
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.best_path: Path | None = None
        self._best: tuple[int, float] | None = None

    def on_fit_start(self, trainer: FederatedTrainer) -> None:
        """Called before the first round.

        Raises:
            CheckpointError: The folder holds the checkpoints of another run.
            LightningFLError: The strategy has state that cannot be saved.
        """
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
            shutil.rmtree(path)
        root.mkdir(parents=True, exist_ok=True)
        if trainer.current_round == 0:
            self._best = None
        self.best_path = self._path(trainer, self._best[0]) if self._best else None

    def on_round_end(self, trainer: FederatedTrainer) -> None:
        """Called when a round is complete: writes, then removes what is no longer kept.

        Raises:
            LightningFLError: The round has no such metric as ``monitor``.
        """
        if self.monitor is not None:
            value = read_metric(trainer.rounds[-1], self.monitor)
            sign = 1 if self.mode == "min" else -1
            if self._best is None or math.isnan(self._best[1]) or sign * value < sign * self._best[1]:
                self._best = (trainer.current_round, value)
                self.best_path = self._path(trainer, trainer.current_round)
        save_checkpoint(trainer, self._path(trainer, trainer.current_round))
        if self.keep_last is not None:
            for number, path in list_checkpoints(trainer.default_root_dir / CHECKPOINTS)[: -self.keep_last]:
                if self._best is None or number != self._best[0]:
                    shutil.rmtree(path)

    def state_dict(self) -> dict[str, Any]:
        """Give the best round and its value."""
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self._best = tuple(state["best"]) if state.get("best") else None

    @staticmethod
    def _path(trainer: FederatedTrainer, number: int) -> Path:
        return trainer.default_root_dir / CHECKPOINTS / f"round-{number:05d}"
