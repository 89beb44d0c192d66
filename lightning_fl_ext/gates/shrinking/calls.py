"""One call of an operation, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from lightning_fl_ext.gates.shrinking.slots import Known, Slots, Value


@dataclass
class Call:
    """One call of an operation."""

    slots: Slots
    value: Callable[[Tensor], Value]
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    careful: bool
    grouped: set[int] = field(default_factory=set)

    def arguments(self, *names: str) -> list[Any]:
        """The arguments of these names, None for those not given."""
        given = dict(zip(names, self.args, strict=False)) | self.kwargs
        return [given.get(name) for name in names]


Rule = Callable[[Call], Value | None]
"""What is known of the result; None if nothing is, and all that was read must stay."""


def unknown(count: int) -> Known:
    """Positions of which nothing is known."""
    return np.full(count, np.nan)


def zeros_only(known: Known | None) -> Known | None:
    """What is left of known numbers by an operation that keeps zeros."""
    return None if known is None else np.where(known == 0, 0.0, np.nan)
