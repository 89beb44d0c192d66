"""An evaluation step that runs only because the other processes wait in it."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric

from lightning_fl_ext.client.bridge.unrepeated import UnrepeatedBatches


def is_repeat(loader: Any, batch_idx: int) -> bool:
    """Tell whether a batch of an evaluation holds nothing but an example that another batch holds, too."""
    batches = getattr(loader, "batch_sampler", None)
    return isinstance(batches, UnrepeatedBatches) and batches.is_repeat(batch_idx)


class UndoneStep:
    """Undoes what one evaluation step does to a module's metrics and logged values.

    Args:
        trainer: A Lightning Trainer, before the step.
        module: Its LightningModule.
    """

    def __init__(self, trainer: Any, module: torch.nn.Module) -> None:
        self._trainer = trainer
        self._metrics = [m for m in module.modules() if isinstance(m, Metric)] + self._entries()
        self._before = [_read(metric) for metric in self._metrics]

    def undo(self) -> None:
        """Put everything back. What was logged for the first time has then no examples behind it."""
        for metric, before in zip(self._metrics, self._before, strict=True):
            for name, value in before.items():
                setattr(metric, name, value)
        known = set(map(id, self._metrics))  # the hash of a metric changes with its states
        for entry in self._entries():
            if id(entry) not in known:
                entry.reset()
                entry.has_reset, entry._update_count = False, 1  # the other ranks reduce it with this one

    def _entries(self) -> list[Any]:
        return [entry for entry in (self._trainer._results or {}).values() if entry.is_tensor]


def _read(metric: Metric) -> dict[str, Any]:
    states = {name: list(s) if isinstance(s, list) else s.clone() for name, s in metric.metric_state.items()}
    return {**states, "_update_count": metric._update_count, "_computed": metric._computed}
