"""How many examples a fit has really seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size

from lightning_fl_ext.errors import LightningFLError


class ExampleCounter:
    """Counts examples batch by batch, over one epoch and over the fit.

    Args:
        batch_size: Gives the number of examples in a batch. Default: the size of the first dimension of the
            first tensor in it, as Lightning finds it for logging.

    Example:
        >>> counter = ExampleCounter()
        >>> counter.add({"x": torch.zeros(5, 3)}); counter.add({"x": torch.zeros(2, 3)})
        >>> counter.epoch
        7
    """

    def __init__(self, batch_size: Callable[[Any], int] | None = None) -> None:
        self._batch_size = batch_size
        self.epoch = 0
        self.total = 0
        self.largest_epoch = 0

    def add(self, batch: Any) -> None:
        """Count one batch.

        Raises:
            LightningFLError: The size of the batch cannot be told.
        """
        if self._batch_size is not None:
            self.epoch += int(self._batch_size(batch))
            return
        try:
            self.epoch += extract_batch_size(batch)
        except (MisconfigurationException, RecursionError) as error:
            raise LightningFLError(
                f"`FlowerBridge` cannot tell how many examples a batch of type {type(batch).__name__} holds"
                f" ({error}). Pass `batch_size=`, a function from a batch to its number of examples."
            ) from None

    def close_epoch(self, trainer: Any) -> int:
        """End an epoch and give its number of examples, summed over the ranks.

        A ``DistributedSampler`` repeats examples to fill the last batch; repeats are not counted.
        """
        count = self.epoch
        if trainer.world_size > 1:
            mine = torch.tensor(count, device=trainer.strategy.root_device)
            count = int(trainer.strategy.reduce(mine, reduce_op="sum"))
            sampler: Any = getattr(trainer.train_dataloader, "sampler", None)
            if hasattr(sampler, "num_replicas") and hasattr(sampler, "dataset"):
                count = min(count, len(sampler.dataset))
        self.epoch = 0
        self.total += count
        self.largest_epoch = max(self.largest_epoch, count)
        return count
