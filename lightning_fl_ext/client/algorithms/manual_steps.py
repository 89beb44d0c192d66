"""Steps of optimizers under manual optimization, beside those that Lightning tells of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any


class ManualSteps:
    """Counts the steps that optimizers take, to find those that passed Lightning's hooks by.

    Args:
        optimizers: Of a fit, as ``Trainer.optimizers`` gives them.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], 0.1)
        >>> steps = ManualSteps([optimizer])
        >>> optimizer.step()
        >>> steps.end()
        ['SGD']
    """

    def __init__(self, optimizers: Iterable[Any]) -> None:
        self._told: Counter[int] = Counter()
        self._taken: Counter[int] = Counter()
        self._optimizers = [_bare(optimizer) for optimizer in optimizers]
        self._handles = [
            optimizer.register_step_post_hook(self._count)
            for optimizer in self._optimizers
            if hasattr(optimizer, "register_step_post_hook")
        ]

    def tell(self, optimizer: Any) -> None:
        """Note a step that a hook was called before."""
        self._told[id(_bare(optimizer))] += 1

    def end(self) -> list[str]:
        """Stop counting; give the kinds of those optimizers that took steps no hook was called before."""
        for handle in self._handles:
            handle.remove()
        return [type(o).__name__ for o in self._optimizers if self._taken[id(o)] > self._told[id(o)]]

    def _count(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._taken[id(optimizer)] += 1


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
