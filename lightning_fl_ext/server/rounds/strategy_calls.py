"""A strategy at work: what it says of itself, and its methods called so that they give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.serverapp.strategy import DifferentialPrivacyClientSideAdaptiveClipping, Strategy
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from lightning_fl_ext.aggregation.errors import AggregationOverflow, InvalidUpdate
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.server.rounds.quorum import innermost
from lightning_fl_ext.server.screening.checks import ValueLimits
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy
from lightning_fl_ext.text import listed


def read_from(clients: Collection[str]) -> str:
    """Say whose replies were read when something raised over all of them.

    Example:
        >>> read_from(["b", "a"])
        ' It had read the replies of client(s) `a`, `b`.'
    """
    if not clients:
        return ""
    return f" It had read the replies of client(s) {listed(sorted(clients), named=10)}."


class StrategyCalls:
    """Calls a strategy's methods for one fit.

    Around each call it seeds all global random state from (seed, round), and has BLAS use one thread.

    Args:
        strategy: Any Flower strategy. What it says of itself is looked up in it, or in the innermost strategy
            if it is a wrapper.
        seed: The run's.

    Attributes:
        name: The strategy's class.
        reads_coded: Whether it aggregates what an exchange wrote in a code.
        order_free: Whether it takes replies one by one in any order.
        secure: Whether it sees no update, but sums them under masks.
        algorithm: The strategy itself, if clients have a half in it.
        count_key: The metric by which it weighs the clients.
    """

    def __init__(self, strategy: Strategy, seed: int) -> None:
        self.strategy = strategy
        self.seed = seed
        self.name = type(strategy).__name__
        self.reads_coded = bool(getattr(strategy, "reads_coded", False))
        self.order_free = bool(getattr(strategy, "order_free", False))
        self.secure = bool(getattr(innermost(strategy), "secure", False))
        if self.secure and innermost(strategy) is not strategy:
            raise LightningFLError(
                f"{self.name} needs each client's update, and {type(innermost(strategy)).__name__} sees none:"
                " use it without a wrapper."
            )
        self.algorithm = strategy if isinstance(strategy, AlgorithmStrategy) else None
        inner = innermost(strategy)
        if (
            self.algorithm is None
            and isinstance(inner, AlgorithmStrategy)
            and (inner.sends_or_keeps or inner.clients_keep)
        ):
            raise LightningFLError(
                f"{self.name} changes updates on their way to {type(inner).__name__}, whose server half and"
                " client half would then no longer agree. Use it without a wrapper, or wrap `FedAvg`."
            )
        self.count_key: str = getattr(innermost(strategy), "weighted_by_key", "num-examples")
        self._blas = ThreadpoolController()

    @property
    def reserves(self) -> bool:
        """Whether it reserves a part of a privacy budget when it asks clients to train."""
        return getattr(self.strategy, "accountant", None) is not None

    @property
    def asks_to_evaluate(self) -> bool:
        """Whether it ever asks clients to evaluate."""
        return getattr(innermost(self.strategy), "fraction_evaluate", None) != 0.0

    @contextmanager
    def asking_all(self) -> Iterator[None]:
        """Have it ask all clients to evaluate, whatever share of them it asks otherwise."""
        strategy: Any = innermost(self.strategy)
        share = getattr(strategy, "fraction_evaluate", None)
        if share is None:
            yield
            return
        strategy.fraction_evaluate = 1.0
        try:
            yield
        finally:
            strategy.fraction_evaluate = share

    def metrics_function(self, phase: str) -> Callable[..., Any] | None:
        """Give its function from the clients' metrics to a round's.

        Args:
            phase: ``"train"`` or ``"evaluate"``.
        """
        return getattr(innermost(self.strategy), f"{phase}_metrics_aggr_fn", None)

    def limits(self, num_clients: int, max_update_norm: float | None, max_weight: float) -> ValueLimits:
        """Say what it can compute with.

        Args:
            num_clients: Clients asked.
            max_update_norm: The run's limit.
            max_weight: That on the magnitude of a weight.
        """
        max_term = getattr(innermost(self.strategy), "max_term", None)
        # Flower's wrappers that clip on the server divide by the norm.
        clips = hasattr(self.strategy, "clipping_norm") and hasattr(self.strategy, "current_arrays")
        inner: Any = innermost(self.strategy)
        needed: dict[str, float] = {}
        if hasattr(inner, "train_loss_key"):  # Flower's QFedAvg, which has it to the power of q
            needed[inner.train_loss_key] = 1e12 ** (1 / max(1.0, getattr(inner, "q", 1.0)))
        if isinstance(self.strategy, DifferentialPrivacyClientSideAdaptiveClipping):
            needed["norm_bit"] = 1.0
        return ValueLimits(
            needed=needed,
            count_key=self.count_key,
            min_update_norm=1e-18 if clips else 0.0,
            max_update_norm=max_update_norm,
            max_term=None if max_term is None else max_term(num_clients),
            max_weight=max_weight,
            max_extra_norm=self.algorithm.max_extra_norm if self.algorithm is not None else None,
        )

    def call(self, method: str, server_round: int, *args: Any, clients: Collection[str] = ()) -> Any:
        """Call a method; of one that configures, give the messages as a list.

        Args:
            method: Its name.
            server_round: The current round.
            *args: For the method.
            clients: Whose replies it reads, or has read by the time it raises.

        Raises:
            LightningFLError: The method raised.
        """
        with self._around(server_round, method.replace("_", "-")):
            try:
                result = getattr(self.strategy, method)(server_round, *args)
                return list(result) if method.startswith("configure") else result
            except (InvalidUpdate, AggregationOverflow) as error:  # which know of no round
                raise type(error)(
                    f"{self.name}.{method} failed in round {server_round}: {error}.{read_from(clients)}"
                ) from error
            except LightningFLError:
                raise
            except Exception as error:
                raise LightningFLError(
                    f"{self.name}.{method} failed in round {server_round}: {described(error)}. The model of"
                    f" the round before is the last good one.{read_from(clients)}"
                ) from error

    def end_round(self, void: bool) -> None:
        """Tell a strategy whose state steps with the model whether the round counts."""
        if (end := getattr(innermost(self.strategy), "end_round", None)) is not None:
            end(void)

    def end_fit(self) -> None:
        """Have a strategy let go of what it keeps between rounds and is no state."""
        if (end := getattr(innermost(self.strategy), "end_fit", None)) is not None:
            end()

    @contextmanager
    def _around(self, server_round: int, purpose: str) -> Iterator[None]:
        # BLAS adds in another order on another number of threads. What is order-free uses none, and
        # has clients of this process run while it aggregates: they keep their threads.
        limit = None if self.order_free else 1
        random = seeded(derive_seed(self.seed, server_round, "", purpose))
        with random, self._blas.limit(limits=limit, user_api="blas"):
            yield
