"""What a local fit produces: a result for each epoch, and the update a client hands in for a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from lightning_fl_ext.results.digest import digest
from lightning_fl_ext.results.score import pseudo_sort_scoring_function

Arrays = Mapping[str, NDArray[Any]]
"""Named arrays in state-dict order."""


@dataclass(frozen=True, eq=False)
class _Result:
    """Weights with the number of examples behind them."""

    arrays: Arrays = field(repr=False)
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    @cached_property
    def score(self) -> float:
        """The value of :func:`pseudo_sort_scoring_function` for these arrays and this count."""
        return float(pseudo_sort_scoring_function((None, list(self.arrays.values()), self.num_examples)))

    @cached_property
    def digest(self) -> str:
        """The :func:`digest` of the arrays."""
        return digest(self.arrays)


@dataclass(frozen=True, eq=False)
class EpochResult(_Result):
    """The weights after one local epoch.

    Attributes:
        arrays: Named arrays in state-dict order. May be read from disk when used.
        num_examples: Examples seen in this epoch.
        epoch: Index of the epoch in the fit, from 0.
        metrics: What the fit had logged by the end of the epoch.

    Example:
        >>> import numpy as np
        >>> result = EpochResult({"w": np.array([0.5, 2.0])}, num_examples=10, epoch=0)
        >>> result.score, result.digest[:8]
        (10.5, '7b50111e')
    """

    epoch: int = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class ClientUpdate(_Result):
    """What a client hands in for a round.

    Attributes:
        arrays: Named arrays in state-dict order.
        num_examples: The weight in an average: the largest epoch's count of examples.
        client_id: The client's declared name; ``""`` if it declares none.
        server_round: The round it answers, from 1; 0 outside a federation.
        examples_seen: Examples over all epochs.
        steps: Optimizer steps.
        epochs: Local epochs, counting a last one that was cut short.
        metrics: The last logged values.

    Example:
        >>> import numpy as np
        >>> ClientUpdate({"w": np.ones(2)}, 8, client_id="site-a", server_round=3)
        ClientUpdate(num_examples=8, metrics={}, client_id='site-a', server_round=3, examples_seen=0, ...)
    """

    client_id: str = field(default="", kw_only=True)
    server_round: int = field(default=0, kw_only=True)
    examples_seen: int = field(default=0, kw_only=True)
    steps: int = field(default=0, kw_only=True)
    epochs: int = field(default=0, kw_only=True)
