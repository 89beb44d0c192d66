"""Evaluations over several processes in which no example counts twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from lightning_fl_ext.once import warn_once

log = logging.getLogger(__name__)


class UnrepeatedBatches(BatchSampler):
    """The batches of one rank's ``DistributedSampler``, without the examples that it repeats.

    Every rank has as many batches as before, since ranks may wait for each other in each of them. A rank with
    an example less makes its last two batches smaller, if it must. One that has fewer examples than batches
    makes its last batch of a repeated example; :meth:`is_repeat` tells.

    Args:
        batches: Torch's own, over a ``DistributedSampler``; one that drops its last batch keeps full ones
            alone, of as many as every rank has.

    Example:
        >>> samplers = [DistributedSampler(range(5), 2, rank, shuffle=False) for rank in (0, 1)]
        >>> [list(UnrepeatedBatches(BatchSampler(s, 2, drop_last=False))) for s in samplers]
        [[[0, 2], [4]], [[1], [3]]]
    """

    def __init__(self, batches: BatchSampler) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        sampler: Any = batches.sampler
        replicas, everywhere = sampler.num_replicas, min(len(sampler.dataset), sampler.total_size)
        own = len(range(sampler.rank, everywhere, replicas))
        if self.drop_last:
            self.sizes = [self.batch_size] * (everywhere // replicas // self.batch_size)
        else:
            self.sizes = _sizes(own, -(-sampler.num_samples // self.batch_size), self.batch_size)
        self._first_repeat = own if own < len(self.sizes) else len(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        for size in self.sizes:
            yield list(islice(indices, size))

    def is_repeat(self, batch_idx: int) -> bool:
        """Tell whether a batch holds nothing but an example that another batch holds, too."""
        return batch_idx >= self._first_repeat


def _sizes(examples: int, batches: int, most: int) -> list[int]:
    """Spread examples over batches, full ones first, none of them empty.

    Example:
        >>> _sizes(21, 3, 10), _sizes(20, 3, 10), _sizes(0, 1, 10)
        ([10, 10, 1], [10, 9, 1], [1])
    """
    sizes = []
    for after in reversed(range(batches)):
        sizes.append(max(1, min(most, examples - after)))
        examples -= sizes[-1]
    return sizes


def evaluate_unrepeated(trainer: Any) -> None:
    """Have a Trainer give evaluations no example twice, where it spreads them over processes.

    Args:
        trainer: A Lightning Trainer whose run begins.
    """
    strategy = trainer.strategy
    if trainer.world_size > 1 and "process_dataloader" not in vars(strategy):
        strategy.process_dataloader = _unrepeating(trainer, strategy.process_dataloader)


def spread_as_before(trainer: Any) -> None:
    """Undo :func:`evaluate_unrepeated`."""
    vars(trainer.strategy).pop("process_dataloader", None)


def _unrepeating(trainer: Any, process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def process_dataloader(loader: Any) -> Any:
        if trainer.evaluating and isinstance(loader, DataLoader):
            _drop_repeats(loader, trainer)
        return process(loader)

    return process_dataloader


def _drop_repeats(loader: DataLoader[Any], trainer: Any) -> None:
    batches: Any = loader.batch_sampler
    sampler: Any = getattr(batches, "sampler", loader.sampler)
    is_known = type(sampler) is DistributedSampler or type(sampler).__name__ == "DistributedSamplerWrapper"
    if is_known and type(batches) is BatchSampler:
        object.__setattr__(loader, "batch_sampler", UnrepeatedBatches(batches))  # before it is iterated
    elif getattr(sampler, "total_size", 0) > len(getattr(sampler, "dataset", ())) and trainer.is_global_zero:
        text = (
            f"the `{type(sampler).__name__}` of an evaluation repeats"
            f" {sampler.total_size - len(sampler.dataset)} of {len(sampler.dataset)} examples, so that the"
            f" {sampler.num_replicas} processes have as many, and with `{type(batches).__name__}` it cannot"
            " be helped: its metrics count them twice. Give the loader a `batch_size` in its place."
        )
        warn_once(log, "", text)
