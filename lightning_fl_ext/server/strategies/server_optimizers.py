"""Server optimizers on the exact pseudo-gradient: `ExactFedAvgM`, `ExactFedAdam`, and their kin."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_fl_ext.arguments import limit
from lightning_fl_ext.server.strategies.exact_fedopt import ExactFedOpt, Float64


class ExactFedAvgM(ExactFedOpt):
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335): ``m = server_momentum * m + delta; w += rate * m``.

    Args:
        server_learning_rate: The rate.
        server_momentum: From 0, which is FedAvg with a rate, to below 1.
        **options: Those of :class:`ExactFedOpt`.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of range.

    Example:
        >>> ExactFedAvgM(fraction_train=0.5).server_momentum
        0.9
    """

    def __init__(
        self, server_learning_rate: float = 1.0, server_momentum: float = 0.9, **options: Any
    ) -> None:
        super().__init__(**options)
        self.server_learning_rate = _positive("server_learning_rate", server_learning_rate)
        self.server_momentum = _decay("server_momentum", server_momentum)

    def step(self, delta: Float64, m: Float64 | None, v: Float64 | None) -> tuple[Float64, None, Float64]:
        """See the class."""
        m = delta if m is None else self.server_momentum * m + delta
        return m, None, self.server_learning_rate * m


class ExactFedAdam(ExactFedOpt):
    """FedAdam (Reddi et al. 2021, algorithm 2): ``v = beta_2 * v + (1 - beta_2) * delta**2``.

    With ``m = beta_1 * m + (1 - beta_1) * delta`` the step is ``eta * m / (sqrt(v) + tau)``; ``m`` starts at
    0 and ``v`` at ``tau**2``, without a correction, as in the paper. Flower's ``FedAdam`` starts ``v`` at 0
    and corrects.

    Args:
        eta: The server's rate.
        beta_1: Decay of the first moment, from 0 to below 1.
        beta_2: Decay of the second moment, from 0 to below 1.
        tau: How much the rates may adapt: the less, the more.
        **options: Those of :class:`ExactFedOpt`.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of range.

    Example:
        >>> ExactFedAdam(eta=0.03).tau
        0.001
    """

    def __init__(
        self,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.eta, self.tau = _positive("eta", eta), _positive("tau", tau)
        self.beta_1, self.beta_2 = _decay("beta_1", beta_1), _decay("beta_2", beta_2)

    def step(self, delta: Float64, m: Float64 | None, v: Float64 | None) -> tuple[Float64, Float64, Float64]:
        """See the class."""
        m = (1 - self.beta_1) * delta if m is None else self.beta_1 * m + (1 - self.beta_1) * delta
        v = self.second_moment(delta * delta, np.full_like(delta, self.tau**2) if v is None else v)
        return m, v, self.eta * m / (np.sqrt(v) + self.tau)

    def second_moment(self, square: Float64, v: Float64) -> Float64:
        """Give the second moment after a round, from the pseudo-gradient's square and the one before."""
        return self.beta_2 * v + (1 - self.beta_2) * square


class ExactFedYogi(ExactFedAdam):
    """FedYogi (Reddi et al. 2021, algorithm 2): ``v -= (1 - beta_2) * delta**2 * sign(v - delta**2)``.

    The rest is that of :class:`ExactFedAdam`, arguments included.

    Example:
        >>> ExactFedYogi().beta_2
        0.99
    """

    def second_moment(self, square: Float64, v: Float64) -> Float64:
        """See the class."""
        return v - (1 - self.beta_2) * square * np.sign(v - square)


class ExactFedAdagrad(ExactFedAdam):
    """FedAdagrad (Reddi et al. 2021, algorithm 2): ``v += delta**2``.

    The rest is that of :class:`ExactFedAdam`; ``beta_1`` is 0 unless given, as in the paper's experiments.

    Args:
        eta: The server's rate.
        beta_1: Decay of the first moment, from 0 to below 1.
        tau: How much the rates may adapt: the less, the more.
        **options: Those of :class:`ExactFedOpt`.

    Example:
        >>> ExactFedAdagrad().beta_1
        0.0
    """

    def __init__(self, eta: float = 0.1, beta_1: float = 0.0, tau: float = 1e-3, **options: Any) -> None:
        super().__init__(eta, beta_1, 0.0, tau, **options)

    def second_moment(self, square: Float64, v: Float64) -> Float64:
        """See the class."""
        return v + square


def _positive(name: str, value: Any) -> float:
    number = limit(name, value)
    if number is None or not np.isfinite(number):
        raise ValueError(f"`{name}` must be a positive number. Got {value!r}.")
    return number


def _decay(name: str, value: Any) -> float:
    number = limit(name, value, zero=True)
    if number is None or not number < 1:
        raise ValueError(f"`{name}` must be a number from 0 to below 1. Got {value!r}.")
    return number
