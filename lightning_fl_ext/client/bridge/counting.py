"""How many examples a fit has really seen."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from lightning_fl_ext.client.bridge.batch_size import (
    UndecidedBatch,
    batch_size,
    items_at_most,
    items_drawn,
)
from lightning_fl_ext.errors import LightningFLError

log = logging.getLogger(__name__)

REMEDY = "`FlowerBridge(batch_size=...)`"
"""Where a user of the bridge alone says how many examples a batch holds."""


class ExampleCounter:
    """Counts examples batch by batch, over one epoch and over the fit.

    Args:
        batch_size: Gives the number of examples in a batch. Default: the number the module gives Lightning,
            or else what :func:`~lightning_fl_ext.client.bridge.batch_size.batch_size` finds in it.
        strict: Whether to refuse a batch that does not tell, rather than to warn once and count the size of
            its first leaf.
        remedy: Where the user says how many, for the message.

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

    def __init__(
        self,
        batch_size: Callable[[Any], int] | None = None,
        *,
        strict: bool = True,
        remedy: str = REMEDY,
    ) -> None:
        self._batch_size = batch_size
        self._strict = strict
        self._remedy = remedy
        self._warned = False
        self._counts: Counter[int] = Counter()
        self.epochs = 0
        self.total = 0
        self.largest_epoch = 0
        self.by_dataloader: tuple[int, ...] = ()

    @property
    def epoch(self) -> int:
        """Examples in the current epoch, of this process."""
        return self._counts.total()

    def add(
        self,
        batch: Any,
        dataloader_idx: int = 0,
        *,
        loader: Any = None,
        batch_idx: int = 0,
        reported: int | None = None,
    ) -> None:
        """Count one batch.

        Args:
            batch: As the module was given it.
            dataloader_idx: Which loader of an evaluation it comes from.
            loader: The loader, or the collection of them whose batches come together as one.
            batch_idx: The batch's index.
            reported: The number that the module gave Lightning for it.

        Raises:
            LightningFLError: The size of the batch cannot be told.
        """
        self._counts[dataloader_idx] += self._examples(batch, loader, batch_idx, reported)

    def _examples(self, batch: Any, loader: Any, batch_idx: int, reported: int | None) -> int:
        if self._batch_size is not None:
            return int(self._batch_size(batch))
        if (parts := _parts(batch, loader)) is not None:
            return sum(self._examples(part, one, batch_idx, None) for part, one in parts if part is not None)
        if reported is not None:
            return reported
        try:
            return batch_size(batch, items_drawn(loader, batch_idx), items_at_most(loader))
        except (UndecidedBatch, RecursionError) as error:
            said = (
                f"cannot tell how many examples a batch of type {type(batch).__name__} holds: {error}. Pass a"
                f" function from a batch to its number of examples as {self._remedy}, or have the module give"
                " the number: `self.log(..., batch_size=...)`."
            )
            if self._strict or not isinstance(error, UndecidedBatch) or "nothing in" in str(error):
                raise LightningFLError(f"`FlowerBridge` {said}") from None
            if not self._warned:
                log.warning("`FlowerBridge` %s It counts %d, the size of the first leaf.", said, error.guess)
                self._warned = True
            return error.guess

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
            replicas = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", trainer.world_size)
            counts = [
                int(min(count * replicas // trainer.world_size, size))
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
    sizes: list[float] = []
    for loader in tree_leaves(_combined(trainer, stage).iterables):
        sampler: Any = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        sizes.append(len(sampler.dataset) if hasattr(sampler, "num_replicas") else math.inf)
    return [sum(sizes)] if stage == "fit" else sizes


def loader_of(trainer: Any, stage: str, dataloader_idx: int = 0) -> Any:
    """Give the loader that a batch comes from, or the collection of those whose batches come as one.

    Args:
        trainer: A Lightning Trainer in a run.
        stage: ``"fit"``, ``"validate"`` or ``"test"``.
        dataloader_idx: Which loader of an evaluation.

    Returns:
        None if it cannot be told.
    """
    combined = _combined(trainer, stage)
    if combined is None:
        return None
    if stage == "fit" or combined._mode != "sequential":
        return combined.iterables
    flat = tree_leaves(combined.iterables)
    return flat[dataloader_idx] if dataloader_idx < len(flat) else None


def _combined(trainer: Any, stage: str) -> Any:
    in_fit = trainer.state.fn == "fit"
    loops = {
        "fit": trainer.fit_loop,
        "validate": trainer.fit_loop.epoch_loop.val_loop if in_fit else trainer.validate_loop,
        "test": trainer.test_loop,
    }
    return loops[stage]._combined_loader


def _parts(batch: Any, loaders: Any) -> list[tuple[Any, Any]] | None:
    """Give each loader's part of a batch; None if there is one loader."""
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping) and batch.keys() == loaders.keys():
        return [(batch[key], loader) for key, loader in loaders.items()]
    if isinstance(loaders, list | tuple) and isinstance(batch, Sequence) and len(batch) == len(loaders):
        return list(zip(batch, loaders, strict=True))
    return None
