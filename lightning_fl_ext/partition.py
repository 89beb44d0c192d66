"""Splitting a data set into label-skewed shares, to simulate clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def dirichlet_split(
    labels: Sequence[int] | NDArray[Any],
    num_clients: int,
    *,
    alpha: float = 0.5,
    seed: int = 0,
    min_examples: int = 1,
) -> list[NDArray[np.int64]]:
    """Split examples into unequal, label-skewed shares.

    For each label, the share of every client is drawn from Dirichlet(``alpha``), as in Hsu et al. 2019
    (arXiv:1909.06335, section 3). Examples then move one at a time from the largest share to those below
    ``min_examples``. The result depends on the arguments alone.

    Args:
        labels: Integer label of each example, shape (examples,).
        num_clients: Number of shares.
        alpha: Concentration. Small: few labels per client; large: equal shares.
        seed: Seed of the draw.
        min_examples: Least number of examples in a share.

    Returns:
        One sorted index array per client; together they hold each index exactly once.

    Raises:
        ValueError: ``alpha`` is not positive and finite, ``num_clients`` is below 1, ``labels`` is not one-
            dimensional, or there are fewer than ``num_clients * min_examples`` examples.

    Example:
        >>> shares = dirichlet_split([0, 1] * 50, num_clients=3, alpha=0.5, seed=1)
        >>> sum(len(s) for s in shares), sorted(i for s in shares for i in s.tolist()) == list(range(100))
        (100, True)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"`labels` must be one-dimensional. Got shape {labels.shape}.")
    if num_clients < 1:
        raise ValueError(f"`num_clients` must be at least 1. Got {num_clients}.")
    if not 0 < alpha < math.inf:
        raise ValueError(f"`alpha` must be positive and finite. Got {alpha}.")
    if len(labels) < num_clients * min_examples:
        raise ValueError(
            f"{len(labels)} examples cannot give {num_clients} clients `min_examples={min_examples}` each;"
            " lower one of the two."
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    shares: list[list[int]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.cumsum(rng.dirichlet(np.full(num_clients, alpha)))[:-1] * len(members)
        for share, part in zip(shares, np.split(members, np.round(cuts).astype(np.int64)), strict=True):
            share.extend(part.tolist())
    while min(map(len, shares)) < min_examples:
        min(shares, key=len).append(max(shares, key=len).pop())
    return [np.sort(np.array(share, dtype=np.int64)) for share in shares]
