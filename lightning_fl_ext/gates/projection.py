"""Gates that are open to a given degree: the nearest such distribution, in closed form but for one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_fl_ext.gates.estimators import open_probability
from lightning_fl_ext.gates.stochastic import StochasticGateModule

__all__ = ["project_open_fraction"]

_TOLERANCE = 1e-7
_WIDEST = 1e4


@torch.no_grad()
def project_open_fraction(
    gates: Sequence[StochasticGateModule], target: float, costs: Sequence[float] | None = None
) -> float:
    """Move gates as little as possible so that their expected open fraction is a given one.

    Of all distributions of independent gates with that expected cost, the one with the least relative entropy
    to today's has the odds of each gate multiplied by ``exp(shift * cost)`` with one `shift` for all: the
    I-projection (Csiszár, "I-divergence geometry of probability distributions and minimization problems",
    Annals of Probability 1975, section 3). So the logits are changed in place, and `shift` is what a Lagrange
    multiplier would be. For ``hard_concrete`` and ``gaussian`` gates a gate is open if its sample is not 0.

    Args:
        gates: Layers with logits of their own.
        target: The fraction in (0, 1); with `costs`, of the cost of all gates.
        costs: Cost of one gate of each layer, positive. Default: 1.

    Returns:
        The shift, per unit of cost; costs are scaled to the mean 1.

    Raises:
        ValueError: There are no gates, one layer has a `gater`, or `target` or a cost is out of range.

    Example:
        >>> gate = StochasticGateModule(4, init_prob=0.9)
        >>> project_open_fraction([gate], 0.25) < 0
        True
        >>> gate.probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500], grad_fn=<SigmoidBackward0>)
    """
    sizes = torch.tensor([0 if gate.logits is None else gate.logits.numel() for gate in gates])
    if not 0 < target < 1:
        raise ValueError(f"the open fraction must lie strictly between 0 and 1. Got {target}.")
    if not gates or not bool((sizes > 0).all()):
        raise ValueError("there must be gate layers, each with `logits` of its own and not with a `gater`.")
    weights = torch.tensor([1.0] * len(gates) if costs is None else list(costs), dtype=torch.float64)
    if len(weights) != len(gates) or not bool(((weights > 0) & weights.isfinite()).all()):
        raise ValueError(f"there must be one positive cost for each of {len(gates)} layers. Got {costs}.")
    weights = weights * sizes.sum() / (weights * sizes).sum()
    logits = [gate.logits.detach().double() for gate in gates if gate.logits is not None]

    def excess(shift: float) -> float:
        total = sum(
            float(w * _open(gate, x + shift * w)) for gate, x, w in zip(gates, logits, weights, strict=True)
        )
        return total / int(sizes.sum()) - target

    shift = _root(excess)
    for gate, weight in zip(gates, weights, strict=True):
        if gate.logits is not None:
            gate.logits.add_(shift * float(weight))
    return shift


def _open(gate: StochasticGateModule, logits: Tensor) -> Tensor:
    how = {"temperature": gate.temperature, "hard": gate.hard}
    return open_probability(torch.sigmoid(logits), gate.estimator, **how).sum()  # type: ignore[arg-type]


def _root(increasing: Callable[[float], float]) -> float:
    """Find where an increasing function is zero: regula falsi with the Illinois rule, around 0."""
    low = high = middle = 0.0
    below = above = value = increasing(0.0)
    step = 0.5
    while below > 0 and low > -_WIDEST:
        high, above = low, below
        low, step = low - step, 2 * step
        below = increasing(low)
    while above < 0 and high < _WIDEST:
        low, below = high, above
        high, step = high + step, 2 * step
        above = increasing(high)
    last = 0
    for _ in range(100):
        if abs(value) <= _TOLERANCE or low == high:
            break
        middle = (low * above - high * below) / (above - below)
        value = increasing(middle)
        if value < 0:
            low, below, above, last = middle, value, above / 2 if last < 0 else above, -1
        else:
            high, above, below, last = middle, value, below / 2 if last > 0 else below, 1
    return middle
