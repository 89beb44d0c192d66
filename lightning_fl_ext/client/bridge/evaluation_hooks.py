"""The bridge's part in validations and tests, inside a fit and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext.client.bridge.counting import ExampleCounter, loader_of
from lightning_fl_ext.client.bridge.reported_size import ReportedSize
from lightning_fl_ext.client.bridge.undone_step import UndoneStep, is_repeat
from lightning_fl_ext.client.metrics.collector import MetricCollector
from lightning_fl_ext.client.metrics.logged import count_in_floats, told_by_one_batch, told_by_one_rank
from lightning_fl_ext.client.notices import warn_of_one_batch, warn_of_one_rank
from lightning_fl_ext.client.results.store import ResultStore
from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.results import ClientUpdate

if TYPE_CHECKING:
    from flwr.app import Message


class EvaluationHooks(Callback):
    """Counts the examples of validations and tests, and takes their metrics' states. Base of the bridge.

    Attributes:
        client_id: The client's name.
    """

    client_id: str
    _evaluated: ExampleCounter
    _reported: ReportedSize
    _metrics: MetricCollector
    _store: ResultStore
    _message: Message | None
    _undone: UndoneStep | None = None

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before a validation batch: at the first, notes what its metrics have seen before."""
        self._reported.listen(pl_module)
        if batch_idx == dataloader_idx == 0:
            self._metrics.evaluation_begins(pl_module)
        self._note_repeat("validate", trainer, pl_module, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after a validation batch: counts its examples, if they are to be told."""
        repeated = self._undo_repeat()
        count_in_floats(trainer)
        reported = self._reported.stop()
        if not repeated and (trainer.state.fn != "fit" or self._metrics.active):
            self._count("validate", trainer, batch, batch_idx, dataloader_idx, reported)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation ends, before its metrics are reset: takes their states."""
        self._evaluated.close_epoch(trainer, "validate")
        if not trainer.sanity_checking:
            self._metrics.take("validate", trainer, pl_module, self._evaluated.by_dataloader)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation has ended: notes by which names its metrics were logged."""
        self._keep_stage("validate", trainer, pl_module)

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before a test batch: at the first, notes what its metrics have seen before."""
        self._reported.listen(pl_module)
        if batch_idx == dataloader_idx == 0:
            self._metrics.evaluation_begins(pl_module)
        self._note_repeat("test", trainer, pl_module, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after a test batch: counts its examples."""
        repeated = self._undo_repeat()
        count_in_floats(trainer)
        reported = self._reported.stop()
        if not repeated:
            self._count("test", trainer, batch, batch_idx, dataloader_idx, reported)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when a test ends, before its metrics are reset: takes their states."""
        self._evaluated.close_epoch(trainer)
        self._metrics.take("test", trainer, pl_module, self._evaluated.by_dataloader)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when a test has ended: notes by which names its metrics were logged."""
        self._keep_stage("test", trainer, pl_module)

    def _note_repeat(
        self, stage: str, trainer: Any, module: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        repeated = is_repeat(loader_of(trainer, stage, dataloader_idx), batch_idx)
        self._undone = UndoneStep(trainer, module) if repeated else None

    def _undo_repeat(self) -> bool:
        """Leave no trace of a batch that another process has, too; tell whether it was one."""
        undone, self._undone = self._undone, None
        if undone is not None:
            undone.undo()
        return undone is not None

    @property
    def _run(self) -> object:
        """The run in which a warning is said once."""
        return self._message.metadata.run_id if self._message is not None else 0

    def _count(
        self, stage: str, trainer: Any, batch: Any, batch_idx: int, dataloader_idx: int, reported: int | None
    ) -> None:
        loader = loader_of(trainer, stage, dataloader_idx)
        self._evaluated.add(batch, dataloader_idx, loader=loader, batch_idx=batch_idx, reported=reported)

    def _keep_stage(self, stage: str, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            warn_of_one_rank(told_by_one_rank(trainer), trainer, self._run)
            pooled = named_metrics(module).values() if self._metrics.active else ()
            warn_of_one_batch(told_by_one_batch(trainer, pooled), trainer, self._run)
        if self._metrics.active and (told := self._metrics.close(stage, trainer, module)) is not None:
            data = np.frombuffer(told.to_bytes(), dtype=np.uint8)
            self._store.put(stage, ClientUpdate({METRIC_STATES: data}, told.pack.num_examples or 0))
