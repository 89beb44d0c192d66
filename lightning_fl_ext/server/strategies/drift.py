"""Strategies against client drift, with a half on the clients: FedProx, SCAFFOLD, FedNova and FedDyn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy, Setting
from lightning_fl_ext.server.strategies.values import at_least_single, positive, wide


class FedProx(AlgorithmStrategy):
    """FedProx (Li et al. 2020, arXiv:1812.06127, section 3.2) with the exact mean.

    Clients add ``mu * (w - w_global)`` to their gradients. Flower's ``FedProx`` reaches the same clients, and
    any other strategy does with ``FederatedTrainer(train_config={"proximal-mu": mu})``.

    Args:
        mu: How strongly clients are pulled towards the global weights.
        **options: Arguments of Flower's ``FedAvg``.

    Raises:
        ValueError: ``mu`` is negative or not finite.

    Example:
        >>> FedProx(mu=0.1).mu
        0.1
    """

    algorithm = "fedprox"

    def __init__(self, mu: float, **options: Any) -> None:
        super().__init__(**options)
        self.mu = positive("mu", mu, zero=True)

    def settings(self, server_round: int) -> Mapping[str, Setting]:
        """Tell clients how strongly."""
        return {"proximal-mu": self.mu}


class Scaffold(AlgorithmStrategy):
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II).

    Server and clients keep a control variate each, and clients add the difference ``c - c_i`` to their
    gradients. ``c_i`` becomes the mean of the gradients that a client saw along its path, which under plain
    SGD is the paper's ``c_i - c + (x - y_i) / (K * lr)``; so momentum, Adam and schedules have one as well.
    Both means are weighted by examples, as the loss of the federation is, where the paper has equal clients.

    Twice the bytes of FedAvg, up and down; four more models in a client's memory and one on its disk.

    Args:
        server_learning_rate: Of the step from the global weights to the mean. Buffers take their mean.
        **options: Arguments of Flower's ``FedAvg``; and ``max_extra_norm``, the largest norm of the change of
            a client's control variate.

    Raises:
        ValueError: The rate is not a positive number.

    Example:
        >>> Scaffold(fraction_train=0.5).server_learning_rate
        1.0
    """

    algorithm = "scaffold"
    clients_keep = True

    def __init__(self, server_learning_rate: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.server_learning_rate = positive("server_learning_rate", server_learning_rate)

    def extras(self, arrays: Arrays) -> Arrays:
        """Send the server's control variate: zeros in the first round."""
        return {n: self.kept.get(n, np.zeros_like(a)) for n, a in self.expected(arrays).items()}

    def expected(self, arrays: Arrays) -> Arrays:
        """Expect by how much a client's own has changed."""
        names = self.trained(arrays)
        return {name: np.zeros(arrays[name].shape, at_least_single(arrays[name])) for name in names}

    def combine(
        self, before: Arrays, mean: Arrays, extras: Arrays, share: float
    ) -> tuple[Arrays, dict[str, Any]]:
        """Step to the mean, and move the control variate by the share of clients that moved theirs."""
        control = self.extras(before)
        moved = {n: (c + extras[n] * c.dtype.type(share)).astype(c.dtype) for n, c in control.items()}
        rate = self.server_learning_rate
        if rate == 1:
            return mean, moved
        stepped = {n: wide(before[n]) + rate * (wide(mean[n]) - wide(before[n])) for n in control}
        return {**mean, **stepped}, moved


class FedNova(AlgorithmStrategy):
    """FedNova (Wang et al. 2020, arXiv:2007.07481, section 4): clients of many steps weigh no more for it.

    Each client's change is divided by its normalizer, the number of its steps where they are those of plain
    SGD, and the mean of these is multiplied by the mean normalizer. Under momentum and learning-rate
    schedules the normalizer is the paper's ``||a_i||_1``, which clients compute from what their SGD does;
    other optimizers have none, and are refused there. Buffers take their mean.

    One number more than FedAvg in bytes; a second float64 model on the server.

    Args:
        **options: Arguments of Flower's ``FedAvg``; and ``max_extra_norm``, a client's largest normalizer.

    Example:
        >>> FedNova(fraction_train=0.5).algorithm
        'fednova'
    """

    algorithm = "fednova"

    def expected(self, arrays: Arrays) -> Arrays:
        """Expect a client's normalizer."""
        return {"normalizer": np.zeros((), np.float64)}

    def check(self, extras: Arrays) -> None:
        """Refuse a normalizer that no steps have."""
        value = float(extras["normalizer"])
        if not 1e-6 <= value <= 1e9:
            raise ValueError(f"expected a normalizer from 1e-6 to 1e9, got {value:g}")

    def contribution(self, before: Arrays, weights: Arrays, extras: Arrays) -> Arrays:
        """Give the change per step."""
        steps = float(extras["normalizer"])
        changes = {n: (wide(weights[n]) - wide(before[n])) / steps for n in self.trained(before)}
        return {**weights, **changes}

    def combine(
        self, before: Arrays, mean: Arrays, extras: Arrays, share: float
    ) -> tuple[Arrays, dict[str, Any]]:
        """Take as many mean steps as clients took on average."""
        steps = float(extras["normalizer"])
        return {**mean, **{n: wide(before[n]) + steps * mean[n] for n in self.trained(before)}}, {}


class FedDyn(AlgorithmStrategy):
    """FedDyn (Acar et al. 2021, arXiv:2111.04263, algorithm 1): clients' optima are made to agree.

    A client minimises its loss minus a linear term that it keeps, plus ``alpha / 2 * ||w - w_global||²``. The
    server keeps the sum of these terms, and corrects the mean by it. Means are weighted by examples, where
    the paper has equal clients. Buffers take their mean.

    The bytes of FedAvg; two more models and room for the largest tensor in a client's memory, and one model
    on its disk.

    Args:
        alpha: Strength of the penalty; the paper has 0.001 to 0.1.
        **options: Arguments of Flower's ``FedAvg``.

    Raises:
        ValueError: ``alpha`` is not a positive number.

    Example:
        >>> FedDyn(alpha=0.01).alpha
        0.01
    """

    algorithm = "feddyn"
    clients_keep = True

    def __init__(self, alpha: float, **options: Any) -> None:
        super().__init__(**options)
        self.alpha = positive("alpha", alpha)

    def settings(self, server_round: int) -> Mapping[str, Setting]:
        """Tell clients how strongly."""
        return {"feddyn-alpha": self.alpha}

    def combine(
        self, before: Arrays, mean: Arrays, extras: Arrays, share: float
    ) -> tuple[Arrays, dict[str, Any]]:
        """Subtract from the mean what clients' terms say of it."""
        terms = {
            n: self.kept.get(n, 0.0) - self.alpha * share * (wide(mean[n]) - wide(before[n]))
            for n in self.trained(before)
        }
        return {**mean, **{n: wide(mean[n]) - term / self.alpha for n, term in terms.items()}}, terms
