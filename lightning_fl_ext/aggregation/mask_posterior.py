"""The Beta posterior of masks: clients' masks in, integer counts of open entries out.

FedPM (Isik et al., "Sparse Random Networks for Communication-Efficient Federated Learning", ICLR 2023,
arXiv:2209.15328, section 3.2) keeps for every parameter a Beta(α, β) with α = prior + opened and
β = prior + closed, and sends down its mode θ = (α − 1) / (α + β − 2). With an integer prior that is a ratio
of two integers, so nothing here is ever rounded and the order in which masks arrive cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MaskPosterior", "ThetaCounts"]

_MAX_TRIALS = 2**16 - 1
_ONE = 2**16  # a probability of 1 in fixed point
_LOWEST, _HIGHEST = 656, 64880  # [0.01, 0.99] in fixed point, rounded inwards


@dataclass(frozen=True)
class ThetaCounts:
    """The server's open probabilities θ of all masked parameters, as integers.

    Args:
        counts: Times each parameter was open, uint16 in [0, `trials`], shape (parameters,).
        trials: Times each parameter was drawn, from 1 to 65535.

    Raises:
        TypeError: `counts` is not uint16.
        ValueError: `counts` is not one-dimensional or exceeds `trials`, or `trials` is out of range.

    Example:
        >>> theta = ThetaCounts(np.array([0, 4, 10], dtype=np.uint16), trials=10)
        >>> theta.probabilities().round(3)
        array([0.01, 0.4 , 0.99], dtype=float32)
    """

    counts: NDArray[np.uint16]
    trials: int

    def __post_init__(self) -> None:
        if self.counts.dtype != np.uint16:
            raise TypeError(f"`counts` must be uint16. Got {self.counts.dtype}.")
        if self.counts.ndim != 1:
            raise ValueError(f"`counts` must be one-dimensional. Got shape {self.counts.shape}.")
        if not 1 <= self.trials <= _MAX_TRIALS:
            raise ValueError(f"`trials` must lie in [1, {_MAX_TRIALS}]. Got {self.trials}.")
        if self.counts.size and self.counts.max() > self.trials:
            raise ValueError(f"`counts` must not exceed `trials` = {self.trials}. Got {self.counts.max()}.")

    @classmethod
    def from_probabilities(cls, probs: NDArray[Any], trials: int = 15) -> ThetaCounts:
        """Round probabilities to multiples of 1 / `trials`: the θ a run starts from.

        The default costs at most 4 bits per parameter on the way down.

        Args:
            probs: Probabilities of any shape, flattened in C order.
            trials: The number of steps between 0 and 1.

        Raises:
            ValueError: A probability is NaN or outside [0, 1].

        Example:
            >>> ThetaCounts.from_probabilities(np.array([0.0, 0.5, 0.9])).counts
            array([ 0,  8, 14], dtype=uint16)
        """
        probs = np.asarray(probs, dtype=np.float64).reshape(-1)
        if not ((probs >= 0) & (probs <= 1)).all():
            raise ValueError("`probs` must lie in [0, 1], without NaN.")
        return cls(np.rint(probs * trials).astype(np.uint16), trials)

    def fixed_point(self) -> NDArray[np.uint16]:
        """θ in units of 2^-16, kept in [0.01, 0.99]: what both ends of a mask code agree on.

        Without these bounds θ reaches 0 or 1, the score logit(θ) is infinite, its gradient 0, and the
        parameter never moves again. Integer arithmetic alone, so every machine gets the same bits.
        """
        table = (np.arange(self.trials + 1, dtype=np.int64) * (2 * _ONE) + self.trials) // (2 * self.trials)
        return table.clip(_LOWEST, _HIGHEST).astype(np.uint16)[self.counts]

    def probabilities(self) -> NDArray[np.float32]:
        """θ as float32 in [0.01, 0.99], exactly the values of :meth:`fixed_point`."""
        return self.fixed_point().astype(np.float32) / np.float32(_ONE)


@dataclass(frozen=True)
class MaskPosterior:
    """Counts of open mask entries since the last reset; :meth:`update` gives the next posterior.

    Args:
        opened: Masks in which each parameter was open, int64, shape (parameters,).
        masks: Number of masks counted.
        rounds: Number of rounds counted.
        prior: α and β before any mask, at least 1. 1 is FedPM's flat prior; more pulls θ towards 1/2.
        reset_every: Rounds after which the counts start again from the prior. 1 forgets at every round;
            the paper resets every 1 / participation rounds, so that each client counts once on average. They
            also start again before a round with which they would exceed 65535 masks, prior included.

    Example:
        >>> posterior = MaskPosterior.start(3)
        >>> masks = [np.array([True, False, True]), np.array([True, False, False])]
        >>> posterior = posterior.update(masks)
        >>> posterior.theta().counts, posterior.theta().trials
        (array([2, 0, 1], dtype=uint16), 2)
        >>> posterior.update(masks[:1]).theta().counts  # the round before is forgotten
        array([1, 0, 1], dtype=uint16)
    """

    opened: NDArray[np.int64]
    masks: int = 0
    rounds: int = 0
    prior: int = 1
    reset_every: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.prior <= _MAX_TRIALS // 2:
            raise ValueError(f"`prior` must be an integer from 1 to {_MAX_TRIALS // 2}. Got {self.prior}.")
        if self.reset_every < 1:
            raise ValueError(f"`reset_every` must be at least 1 round. Got {self.reset_every}.")

    @classmethod
    def start(cls, size: int, *, prior: int = 1, reset_every: int = 1) -> MaskPosterior:
        """The posterior of `size` parameters before the first round."""
        return cls(np.zeros(size, dtype=np.int64), prior=prior, reset_every=reset_every)

    def update(self, masks: Iterable[NDArray[np.bool_]]) -> MaskPosterior:
        """Count one round's masks, in whatever order they come; this posterior stays as it is.

        Args:
            masks: One bool array of shape (parameters,) for each client. It is read once, one mask at a
                time, so a generator keeps one mask in memory.

        Returns:
            The posterior after the round.

        Raises:
            TypeError: A mask is not bool.
            ValueError: A mask has another shape, or there is none.
        """
        opened, new = np.zeros_like(self.opened), 0
        for mask in masks:
            if mask.dtype != np.bool_:
                raise TypeError(f"a mask must be bool. Got {mask.dtype}.")
            if mask.shape != opened.shape:
                raise ValueError(f"a mask must have shape {opened.shape}. Got {mask.shape}.")
            opened += mask
            new += 1
        if not new:
            raise ValueError("`masks` is empty: a round without masks leaves the posterior as it is.")
        if self.rounds == self.reset_every or self._trials + new > _MAX_TRIALS:
            return replace(self, opened=opened, masks=new, rounds=1)
        opened += self.opened
        return replace(self, opened=opened, masks=self.masks + new, rounds=self.rounds + 1)

    def theta(self) -> ThetaCounts:
        """The mode of the posterior, (α − 1) / (α + β − 2), as counts in which the prior is included.

        Raises:
            ValueError: Nothing is counted yet under a flat prior, where the Beta has no mode; or one round
                had more than 65535 masks, prior included.
        """
        if not 1 <= self._trials <= _MAX_TRIALS:
            raise ValueError(
                f"θ needs from 1 to {_MAX_TRIALS} counted masks, prior included. Got {self._trials}:"
                f" {'count a round first' if self._trials < 1 else 'ask fewer clients in a round'}."
            )
        return ThetaCounts((self.opened + (self.prior - 1)).astype(np.uint16), self._trials)

    @property
    def _trials(self) -> int:
        return self.masks + 2 * (self.prior - 1)
