"""How many examples a fit has really seen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import extract_batch_size
from torch.utils._pytree import tree_leaves

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

    Attributes:
        epochs: Epochs ended so far.
        total: Examples in them.
        largest_epoch: Examples in the largest of them.
        by_dataloader: Examples of each dataloader in the epoch that ended last.
    """

    def __init__(self, batch_size: Callable[[Any], int] | None = None) -> None:
        self._batch_size = batch_size
        self._counts: Counter[int] = Counter()
        self.epochs = 0
        self.total = 0
        self.largest_epoch = 0
        self.by_dataloader: tuple[int, ...] = ()

    @property
    def epoch(self) -> int:
        """Examples in the current epoch, of this process."""
        return self._counts.total()

    def add(self, batch: Any, dataloader_idx: int = 0) -> None:
        """Count one batch.

        Raises:
            LightningFLError: The size of the batch cannot be told.
        """
        if self._batch_size is not None:
            self._counts[dataloader_idx] += int(self._batch_size(batch))
            return
        try:
            self._counts[dataloader_idx] += extract_batch_size(batch)
        except (MisconfigurationException, RecursionError) as error:
            raise LightningFLError(
                f"`FlowerBridge` cannot tell how many examples a batch of type {type(batch).__name__} holds"
                f" ({error}). Pass `batch_size=`, a function from a batch to its number of examples."
            ) from None

    def close_epoch(self, trainer: Any, stage: str = "") -> int:
        """End an epoch, or an evaluation, and give its number of examples, summed over the ranks.

        A ``DistributedSampler`` repeats examples to fill the last batch; repeats are not counted.

        Args:
            trainer: A Lightning Trainer in a run. With several processes every rank makes this call.
            stage: ``"fit"``, ``"validate"`` or ``"test"``: whose data was counted. Default: the run's.
        """
        counts = [self._counts[i] for i in range(max(self._counts, default=0) + 1)]
        if trainer.world_size > 1:
            distinct = _distinct_examples(trainer, stage or trainer.state.fn)
            mine = torch.tensor([self._counts[i] for i in range(len(distinct))])
            summed = trainer.strategy.reduce(mine.to(trainer.strategy.root_device), reduce_op="sum").tolist()
            # Ranks that share their batches (tensor parallelism) have each counted them.
            shares = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", trainer.world_size)
            counts = [
                int(min(count * shares // trainer.world_size, size))
                for count, size in zip(summed, distinct, strict=True)
            ]
        self._counts.clear()
        self.by_dataloader, count = tuple(counts), sum(counts)
        self.epochs += 1
        self.total += count
        self.largest_epoch = max(self.largest_epoch, count)
        return count


def _distinct_examples(trainer: Any, stage: str) -> list[float]:
    """Give the number of examples behind each loader's distributed sampler; infinity if it has none.

    Of the loaders of a training there is one sum: their batches come as one.
    """
    in_fit = trainer.state.fn == "fit"
    loops = {
        "fit": trainer.fit_loop,
        "validate": trainer.fit_loop.epoch_loop.val_loop if in_fit else trainer.validate_loop,
        "test": trainer.test_loop,
    }
    sizes: list[float] = []
    for loader in tree_leaves(loops[stage]._combined_loader.iterables):
        sampler: Any = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        sizes.append(len(sampler.dataset) if hasattr(sampler, "num_replicas") else math.inf)
    return [sum(sizes)] if stage == "fit" else sizes
