"""Driving a Flower strategy through the two phases of a round, so that the same inputs give the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from lightning_fl_ext.aggregation.conform import conform
from lightning_fl_ext.engines import OrderedGrid
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics.stage import ASK
from lightning_fl_ext.metrics.values import metrics_alone
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.server import dialect
from lightning_fl_ext.server.callbacks.base import call_hook
from lightning_fl_ext.server.clients import Clients, declared_id
from lightning_fl_ext.server.magnitudes import is_finite
from lightning_fl_ext.server.measuring import common_metrics
from lightning_fl_ext.server.pooling import pool_metrics, reduce_scalars
from lightning_fl_ext.server.quorum import innermost, wait_for_clients
from lightning_fl_ext.server.rejection import Reason, Rejection
from lightning_fl_ext.server.result import RoundRecord
from lightning_fl_ext.server.rounds import RoundExchange
from lightning_fl_ext.server.screening import Limits, screen_evaluate_reply, screen_train_reply
from lightning_fl_ext.server.transit import Transit
from lightning_fl_ext.wire import Trip, from_record, to_record

if TYPE_CHECKING:
    from lightning_fl_ext.server.trainer import FederatedTrainer

log = logging.getLogger(__name__)

_WEIGHTED_MEAN = FedAvg().evaluate_metrics_aggr_fn
"""What Flower's strategies do with metrics unless they are told otherwise."""


class StrategyDriver:
    """Calls a strategy's four methods, as ``Strategy.start`` does, for one fit.

    Around the calls it seeds all global random state from (seed, round), hands out nodes and replies in the
    order of the clients' ids, and keeps what does not pass screening away from the strategy.

    Args:
        trainer: Its strategy, seed, limits and callbacks.
        grid: What carries the messages.
    """

    def __init__(self, trainer: FederatedTrainer, grid: Grid) -> None:
        self.trainer = trainer
        self.strategy = trainer.strategy
        self.clients = Clients(grid, trainer.round_timeout)
        self.grid = OrderedGrid(grid, self.clients.ordered)
        if trainer.exchange.coded and not getattr(self.strategy, "reads_coded", False):
            raise LightningFLError(
                f"{self._name} cannot aggregate what {trainer.exchange!r} sends: use `FedPM`."
            )
        self.reads_every_dtype = bool(getattr(self.strategy, "reads_every_dtype", False))
        self.order_free = bool(getattr(self.strategy, "order_free", False))
        self.count_key: str = getattr(innermost(self.strategy), "weighted_by_key", "num-examples")
        self._blas = ThreadpoolController()
        self._metrics = metrics_alone(trainer.model)
        self._earlier: set[str] = set()

    def train(self, server_round: int, arrays: Arrays) -> tuple[Arrays, RoundRecord]:
        """Have clients train, and aggregate what they send.

        Args:
            server_round: The current round, from 1.
            arrays: The global weights.

        Returns:
            The new global weights, which are the old ones if the round is void, and the round's record.

        Raises:
            NotEnoughClientsError: Too few clients are connected, or none answers.
            LightningFLError: The strategy fails, or makes weights that do not fit or are not finite.
        """
        least = self.trainer.min_accepted
        wait_for_clients(self.grid, self.strategy, self.trainer.round_timeout, least)
        exchange = self._exchange("train", server_round, arrays, screen_train_reply)
        self._refuse_if_too_few_are_asked(exchange)
        if self.order_free and not exchange.anonymous:
            heads: dict[str, ClientUpdate] = {}
            new, metrics = self._aggregate(server_round, _noting(exchange.accepted(), heads))
        else:
            replies = exchange.collect()
            heads = {client: replace(update, arrays={}) for client, _, update in replies}
            new = metrics = None
            if len(replies) >= least:
                kept = common_metrics(_metrics_of(heads), server_round)[0] | {self.count_key}
                messages = [reply for _, reply, _ in replies]
                like = self.trainer.exchange.like(arrays)
                dialect.make_readable(messages, kept, like, widen=not self.reads_every_dtype)
                new, metrics = self._aggregate(server_round, messages)
            elif getattr(self.strategy, "accountant", None) is not None:
                self._aggregate(server_round, [])  # releases nothing, so what it has reserved is free again
        self._refuse_if_all_failed(exchange, heads)
        void = bool(exchange.messages) and (new is None or len(heads) < least)
        if new is not None and not void:
            arrays = self._checked(server_round, new, arrays)
        measured, left_out = self._measure("train", metrics, exchange, heads)
        counts = {
            "clients_accepted": len(heads),
            "clients_rejected": len({r.client_id for r in exchange.rejected} - {*heads}),
            "bytes_down": exchange.bytes_down,
            "bytes_up": exchange.bytes_up,
        }
        return arrays, RoundRecord(
            server_round,
            sampled=tuple(exchange.sampled),
            accepted=tuple(sorted(heads)),
            rejected=tuple(exchange.rejected + left_out),
            metrics=measured | {name: float(count) for name, count in counts.items()},
            void=void,
        )

    def evaluate(self, server_round: int, arrays: Arrays) -> tuple[dict[str, float], list[Rejection]]:
        """Have clients evaluate.

        Args:
            server_round: The current round; 0 outside a fit.
            arrays: The global weights.

        Returns:
            Metrics by name, and what was left out.

        Raises:
            NotEnoughClientsError: Too few clients are connected, or none answers.
        """
        if getattr(innermost(self.strategy), "fraction_evaluate", None) != 0.0:  # else nobody is asked
            wait_for_clients(self.grid, self.strategy, self.trainer.round_timeout)
        exchange = self._exchange("evaluate", server_round, arrays, screen_evaluate_reply)
        if not exchange.messages:
            return {}, []
        replies = exchange.collect()
        heads = {client: update for client, _, update in replies}
        if server_round == 0:
            self._refuse_if_all_failed(exchange, heads)
        messages = [reply for _, reply, _ in replies]
        common, _ = common_metrics(_metrics_of(heads), server_round)
        dialect.make_readable(messages, common | {self.count_key})
        metrics = self._call("aggregate_evaluate", server_round, messages)
        measured, left_out = self._measure("evaluate", metrics, exchange, heads)
        return measured, exchange.rejected + left_out

    def seeded(self, server_round: int, purpose: str) -> AbstractContextManager[None]:
        """Seed all global random state for one purpose in a round, and put it back afterwards."""
        return seeded(derive_seed(self.trainer.seed, server_round, "", purpose))

    @property
    def _name(self) -> str:
        return type(self.strategy).__name__

    def _limits(self, num_clients: int) -> Limits:
        max_term = getattr(innermost(self.strategy), "max_term", None)
        # Flower's wrappers that clip on the server divide by the norm.
        clips = hasattr(self.strategy, "clipping_norm") and hasattr(self.strategy, "current_arrays")
        return Limits(
            count_key=self.count_key,
            min_update_norm=1e-18 if clips else 0.0,
            max_update_norm=self.trainer.max_update_norm,
            max_term=None if max_term is None else max_term(num_clients),
        )

    def _exchange(
        self,
        phase: str,
        server_round: int,
        arrays: Arrays,
        screen: Callable[[Message, str, int, Limits, Arrays], ClientUpdate],
    ) -> RoundExchange:
        record = to_record(arrays)
        given = record if self.reads_every_dtype else dialect.readable(record)
        seed = self.trainer.seed
        config = ConfigRecord(
            {"run-seed": seed, "run-id": self.trainer.run_id, "server-round": server_round, ASK: True}
        )
        messages = list(self._call(f"configure_{phase}", server_round, given, config, self.grid))
        sampled = tuple(sorted(self.clients[m.metadata.dst_node_id] for m in messages))
        transit = Transit(self.trainer.exchange, arrays, Trip(seed, server_round, "", sampled))
        transit.put_into(messages, given, record, config)
        limits = self._limits(len(messages))

        def read(reply: Message, client: str) -> ClientUpdate:
            if phase == "train":
                transit.decode(reply, declared_id(reply.content) or client)
            return screen(reply, client, server_round, limits, transit.like)

        exchange = RoundExchange(
            self.grid,
            self.clients,
            messages,
            server_round,
            read,
            self.trainer.round_timeout,
            self.trainer.on_bad_update == "raise",
            lambda reply: call_hook(self.trainer, "on_reply", reply if phase == "train" else None),
            self._earlier,
            phase,
        )
        if messages:
            call_hook(self.trainer, "on_messages", exchange.sampled)
        return exchange

    @property
    def _has_worked(self) -> bool:
        """Whether a round before shows that the set-up can work."""
        return any(record.accepted for record in self.trainer.rounds)

    def _refuse_if_too_few_are_asked(self, exchange: RoundExchange) -> None:
        asked, least = len(exchange.messages), self.trainer.min_accepted
        if 0 < asked < least and not self._has_worked:
            raise LightningFLError(
                f"{self._name} asks {asked} client(s) to train in round {exchange.server_round}, but"
                f" `min_accepted` is {least}: no round could count. Have it ask more (`fraction_train`,"
                " `min_train_nodes`), or lower `min_accepted`."
            )

    def _refuse_if_all_failed(self, exchange: RoundExchange, accepted: Collection[str]) -> None:
        """Raise if the clients' own code fails on all of them, and no round before shows that it can work."""
        failed = [r for r in exchange.rejected if r.reason is Reason.CLIENT_ERROR]
        others = [r for r in exchange.rejected if r.reason not in (Reason.CLIENT_ERROR, Reason.IDLE)]
        worked = accepted or self._has_worked
        if failed and not others and not worked:
            asked = "asked" if len(failed) == len(exchange.messages) else "with examples"
            raise LightningFLError(
                f"all {len(failed)} clients {asked} failed, before any round has worked. One of them:"
                f" {min(failed, key=lambda r: r.client_id)}"
            )

    def _measure(
        self,
        purpose: str,
        aggregated: MetricRecord | None,
        exchange: RoundExchange,
        heads: Mapping[str, ClientUpdate],
    ) -> tuple[dict[str, float], list[Rejection]]:
        """Pool metrics, reduce plain numbers, and say what takes part in neither.

        What a function of the user's own makes of the clients' numbers stands; where the strategy would
        average them like any others, they are reduced as the module says, over their own stage's examples.
        """
        server_round = exchange.server_round
        stages = {client: exchange.stages.get(client, {}) for client in heads}
        reduced = reduce_scalars(heads, stages)
        pooled, left_out = pool_metrics(self._metrics, stages, server_round)
        _, odd = common_metrics(_metrics_of(heads), server_round)
        left_out += [r for r in odd if r.key not in reduced and r.key not in pooled]
        left_out += [
            Rejection(client, server_round, Reason.METRIC, name, "metric states", "a value alone")
            for client in sorted(heads)
            for name in sorted(pooled.keys() & heads[client].metrics.keys())
            if not stages[client]
        ]
        function = getattr(innermost(self.strategy), f"{purpose}_metrics_aggr_fn", None)
        by_strategy = _scalars(aggregated)
        plain = by_strategy | reduced if function is _WEIGHTED_MEAN else reduced | by_strategy
        return plain | pooled, left_out

    def _aggregate(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[Arrays | None, MetricRecord | None]:
        record, metrics = self._call("aggregate_train", server_round, replies)
        return (None if record is None else from_record(record)), metrics

    def _call(self, method: str, server_round: int, *args: Any) -> Any:
        with self._around(server_round, method.replace("_", "-")):
            try:
                result = getattr(self.strategy, method)(server_round, *args)
                return list(result) if method.startswith("configure") else result
            except LightningFLError:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}".rstrip(".: ")
                raise LightningFLError(
                    f"{self._name}.{method} failed in round {server_round}: {said}. The model of the round"
                    " before is the last good one."
                ) from error

    @contextmanager
    def _around(self, server_round: int, purpose: str) -> Iterator[None]:
        # BLAS adds in another order on another number of threads. What is order-free uses none, and
        # has clients of this process run while it aggregates: they keep their threads.
        limit = None if self.order_free else 1
        with self.seeded(server_round, purpose), self._blas.limit(limits=limit, user_api="blas"):
            yield

    def _checked(self, server_round: int, new: Arrays, old: Arrays) -> Arrays:
        wrong = sorted(
            k for k in {*old, *new} if k not in new or k not in old or new[k].shape != old[k].shape
        )
        if wrong:
            raise LightningFLError(
                f"{self._name} gave weights that do not fit the model in round {server_round}, at {wrong[:5]}"
            )
        conformed = conform(new, old)
        if broken := [key for key in old if not (is_finite(new[key]) and is_finite(conformed[key]))]:
            raise LightningFLError(
                f"{self._name} made weights that are not finite in round {server_round}, at {broken[:3]},"
                " from updates that were. The round before is the last good one. `max_update_norm`"
                " leaves out updates that are too large."
            )
        return conformed


def _noting(
    accepted: Iterator[tuple[str, Message, ClientUpdate]], heads: dict[str, ClientUpdate]
) -> Iterator[Message]:
    """Pass replies on, keeping of each all but the arrays."""
    for client, reply, update in accepted:
        heads[client] = replace(update, arrays={})
        del update
        yield reply
        del reply


def _metrics_of(heads: Mapping[str, ClientUpdate]) -> dict[str, Mapping[str, Any]]:
    return {client: head.metrics for client, head in heads.items()}


def _scalars(metrics: MetricRecord | None) -> dict[str, float]:
    return {k: float(v) for k, v in (metrics or {}).items() if not isinstance(v, list)}
