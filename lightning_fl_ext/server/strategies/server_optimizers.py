"""Server optimizers on the exact pseudo-gradient: `ExactFedAvgM`, `ExactFedAdam`, and their kin."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.rounding import rounded
from lightning_fl_ext.aggregation.structure import INTEGERS, PARTS
from lightning_fl_ext.arguments import limit
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg, aggregate_summaries, gather
from lightning_fl_ext.wire import to_record

Float64 = NDArray[np.float64]
State = dict[str, Float64]


class ExactFedOpt(ExactFedAvg):
    """FedOpt (Reddi et al., ICLR 2021, arXiv:2003.00295, algorithm 1): the base of the server optimizers.

    The pseudo-gradient is the exact mean of the updates minus the global weights, in float64; the step and
    its state are computed in float64 too, and the weights rounded once, to their dtypes. Buffers, integers
    and bools are averaged, as :class:`ExactFedAvg` does. A void round leaves the state as it was.

    Of a complex number both parts are optimised by themselves. Takes 8 bytes of memory for each parameter and
    moment, and as much again during a round.

    Args:
        buffers: Names of the model's buffers. A ``FederatedTrainer`` knows them; anything else that runs this
            strategy must say: ``()`` for a model without.
        **options: Arguments of Flower's ``FedAvg``, such as ``fraction_train``.
    """

    _undo: Callable[[], None] | None = None  # a function is no state: it is in no checkpoint

    def __init__(self, *, buffers: Sequence[str] | None = None, **options: Any) -> None:
        if isinstance(buffers, str):
            raise TypeError(f"`buffers` must be a list of names. Got the string {buffers!r}.")
        super().__init__(**options)
        self.buffers = None if buffers is None else list(buffers)
        self.m_t: State = {}
        self.v_t: State = {}

    @abstractmethod
    def step(
        self, delta: Float64, m: Float64 | None, v: Float64 | None
    ) -> tuple[Float64, Float64 | None, Float64]:
        """Take a step.

        Args:
            delta: The pseudo-gradient of one array: where the clients' mean lies from the global weights.
            m: First moment, None in the first round.
            v: Second moment, None in the first round.

        Returns:
            The new moments, None for one that is not kept; and what is added to the global weights.
        """

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average replies as they come, letting go of each, and take a step towards the mean.

        Raises:
            AggregationOverflow: The updates are too large for an exact sum.
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
            LightningFLError: It is not known which arrays are buffers, or what the global weights are.
        """
        if self.buffers is None or self._like is None:
            raise LightningFLError(
                f"{type(self).__name__} needs the global weights from `configure_train`, and the names of"
                " the model's buffers, which are averaged: run it in a `FederatedTrainer`, or give"
                " `buffers=[...]`."
            )
        like, self._like = self._like, None
        mean, summaries = ExactMean(like), list[RecordDict]()
        for several in gather(self._updates(replies, summaries)):
            mean.add_many(several)
            several.clear()
        if not mean.num_updates:
            return None, None
        means, new, averaged = mean.wide_result(), {}, set(self.buffers)
        m_before, v_before = dict(self.m_t), dict(self.v_t)
        for name, old in like.items():
            if old.dtype in INTEGERS or name in averaged:
                new[name] = _rounded(means.pop(name), old)
                continue
            wide = _wide(old)
            delta = means.pop(name).reshape(-1).view(np.float64) - wide
            m, v, step = self.step(delta, self.m_t.get(name), self.v_t.get(name))
            self.m_t.update({name: m} if m is not None else {})
            self.v_t.update({name: v} if v is not None else {})
            new[name] = _rounded(wide + step, old)

        def undo() -> None:
            self.m_t, self.v_t = m_before, v_before

        self._undo = undo
        return to_record(new), aggregate_summaries(
            summaries, self.train_metrics_aggr_fn, self.weighted_by_key
        )

    def end_round(self, void: bool) -> None:
        """Keep the step's state, or take it back if the round does not count."""
        undo, self._undo = self._undo, None
        if void and undo is not None:
            undo()


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


def _wide(array: NDArray[Any]) -> Float64:
    flat = np.ascontiguousarray(array).reshape(-1).view(PARTS.get(array.dtype, array.dtype))
    return flat.astype(np.float64)


def _rounded(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    if like.dtype in INTEGERS:
        return values
    part = PARTS.get(like.dtype, like.dtype)
    flat = rounded(np.ascontiguousarray(values).reshape(-1).view(np.float64), part)
    return flat.view(like.dtype).reshape(like.shape)


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
