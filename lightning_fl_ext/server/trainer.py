"""`FederatedTrainer`: the server's Trainer, in Lightning's words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.aggregation.conform import conform
from lightning_fl_ext.engines import OrderedGrid
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.metrics.discovery import named_metrics
from lightning_fl_ext.results import Arrays, ClientUpdate, digest
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.server import dialect
from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.callbacks.checkpoint import RoundCheckpoint
from lightning_fl_ext.server.callbacks.progress import RoundProgressBar
from lightning_fl_ext.server.central import evaluate_centrally
from lightning_fl_ext.server.checkpointing import fingerprint, load_checkpoint
from lightning_fl_ext.server.clients import Clients
from lightning_fl_ext.server.pooling import average_scalars, pool_metrics
from lightning_fl_ext.server.quorum import wait_for_clients
from lightning_fl_ext.server.result import FederatedResult, RoundRecord
from lightning_fl_ext.server.rounds import RoundExchange
from lightning_fl_ext.server.screening import (
    Rejection,
    common_metrics,
    is_finite,
    screen_evaluate_reply,
    screen_train_reply,
)
from lightning_fl_ext.server.strategy import ExactFedAvg
from lightning_fl_ext.wire import Exchange, WeightExchange, from_record, to_record
from lightning_fl_ext.wire.metric_states import ASK

log = logging.getLogger(__name__)


class FederatedTrainer:
    """Runs federated rounds with any Flower strategy, so that the same inputs give the same bytes.

    It drives the strategy through ``configure_train``, ``aggregate_train``, ``configure_evaluate`` and
    ``aggregate_evaluate``, as ``Strategy.start`` does; around these it seeds all randomness from (seed,
    round), puts nodes and replies into the order of the clients' ids, and screens every reply.

    Args:
        max_rounds: Rounds to run.
        strategy: Any Flower strategy. Default: :class:`ExactFedAvg` with its defaults.
        seed: Seed of the whole run, on the server and on the clients.
        callbacks: :class:`RoundCallback` objects; their hooks are called in this order.
        logger: Lightning loggers, one or several; each round's metrics are logged at the round as step.
        default_root_dir: Folder for checkpoints and the ledger.
        min_accepted: Least number of good updates; with fewer the round is void and the model stays.
        on_bad_update: ``"exclude"`` leaves a bad update out and names it; ``"raise"`` stops the run.
        max_update_norm: Limit on the L2 norm of an update; None for none.
        round_timeout: Seconds to wait for the replies of a round, and for enough clients; None for ever.
        enable_progress_bar: Whether to show a :class:`RoundProgressBar`.
        exchange: What of the model travels. Default: all of it. The clients must use the same.

    Raises:
        ValueError: An argument is not one of the above.

    Attributes:
        current_round: The current round, from 1.
        callback_metrics: The last value of every metric.
        rounds: Records of the rounds so far.
        result: What :meth:`fit` returned last; None before.
    """

    def __init__(
        self,
        max_rounds: int = 3,
        strategy: Strategy | None = None,
        seed: int = 0,
        callbacks: Sequence[RoundCallback] | RoundCallback | None = None,
        logger: Any = None,
        default_root_dir: str | Path = ".",
        min_accepted: int = 1,
        on_bad_update: str = "exclude",
        max_update_norm: float | None = None,
        round_timeout: float | None = 3600.0,
        enable_progress_bar: bool = True,
        exchange: Exchange | None = None,
    ) -> None:
        if max_rounds < 0:
            raise ValueError(f"`max_rounds` must not be negative. Got {max_rounds}.")
        if min_accepted < 1:
            raise ValueError(f"`min_accepted` must be at least 1. Got {min_accepted}.")
        if seed < 0:
            raise ValueError(f"`seed` must not be negative. Got {seed}.")
        if on_bad_update not in ("exclude", "raise"):
            raise ValueError(f"`on_bad_update` must be 'exclude' or 'raise'. Got {on_bad_update!r}.")
        if strategy is not None and not isinstance(strategy, Strategy):
            raise ValueError(
                f"`strategy` must be a flwr.serverapp.strategy.Strategy. Got {type(strategy).__name__}."
            )
        self.max_rounds = max_rounds
        self.strategy = ExactFedAvg() if strategy is None else strategy
        self.seed = seed
        self.callbacks = [callbacks] if isinstance(callbacks, RoundCallback) else list(callbacks or [])
        self.loggers = list(logger) if isinstance(logger, list | tuple) else [logger] if logger else []
        self.default_root_dir = Path(default_root_dir)
        self.min_accepted = min_accepted
        self.on_bad_update = on_bad_update
        self.max_update_norm = max_update_norm
        self.round_timeout = round_timeout
        self.exchange = exchange or WeightExchange()
        if enable_progress_bar and not any(isinstance(c, RoundProgressBar) for c in self.callbacks):
            self.callbacks.insert(0, RoundProgressBar())
        # As in Lightning, checkpoints are written last, when the other callbacks' state is what it will be.
        self.callbacks.sort(key=lambda callback: isinstance(callback, RoundCheckpoint))
        self.should_stop = False
        self.current_round = 0
        self.fingerprint: dict[str, Any] = {}
        self.callback_metrics: dict[str, float] = {}
        self.rounds: list[RoundRecord] = []
        self.result: FederatedResult | None = None
        self.arrays: Arrays = {}
        self._earlier: set[str] = set()

    # The fit

    def fit(
        self,
        model: torch.nn.Module | Callable[[], torch.nn.Module],
        grid: Grid,
        evaluate: Any = None,
        ckpt_path: str | Path | None = None,
    ) -> FederatedResult:
        """Run the rounds.

        Args:
            model: The module whose weights all start from, or its class (or a function without arguments)
                to make it under the run's seed.
            grid: What carries the messages: any Flower ``Grid``.
            evaluate: Evaluates the global model on the server before the first round and after each: a
                function from the module to metrics, or data for ``Trainer.validate``.
            ckpt_path: ``"last"`` to go on from the newest complete checkpoint under ``default_root_dir``, if
                there is one; or the path of one.

        Returns:
            The model with the final weights, the records of all rounds, and the digest.

        Raises:
            LightningFLError: Too few clients, a checkpoint of another run, a bad update under
                ``on_bad_update="raise"``, or an error in a callback. A checkpoint of the rounds before stays.
        """
        self._begin(model, grid)
        self.fingerprint = fingerprint(self)
        with self._reporting():
            if ckpt_path is not None:
                load_checkpoint(self, ckpt_path)
            self._call("on_fit_start")
            if self.current_round == 0 and evaluate is not None:
                self.note(RoundRecord(0, digest=digest(self.arrays), metrics=self._central(evaluate)))
            while self.current_round < self.max_rounds and not self.should_stop:
                self.current_round += 1
                self._run_round(evaluate)
            self._write_model()
            self.result = FederatedResult(self.model, tuple(self.rounds), digest(self.arrays))
            self._call("on_fit_end")
        for logger in self.loggers:
            logger.finalize("success")
        return self.result

    def validate(
        self, model: torch.nn.Module | Callable[[], torch.nn.Module], grid: Grid, evaluate: Any = None
    ) -> dict[str, float]:
        """Evaluate a model once: on the clients, and on the server if asked to.

        Args:
            model: See :meth:`fit`.
            grid: See :meth:`fit`.
            evaluate: See :meth:`fit`.

        Returns:
            Metrics by name; those of the server prefixed with ``server_``.
        """
        self._begin(model, grid)
        with self._reporting():
            self._call("on_fit_start")
            metrics, rejected = self._evaluate(to_record(self.arrays))
            if evaluate is not None:
                metrics |= self._central(evaluate)
            self.rounds.append(RoundRecord(0, rejected=tuple(rejected), metrics=metrics))
        return metrics

    def _begin(self, model: Any, grid: Grid) -> None:
        with seeded(derive_seed(self.seed, 0, "", "init")):
            self.model = model if isinstance(model, torch.nn.Module) else model()
        self.arrays = self.exchange.pack(self.model.state_dict())
        self.current_round, self.rounds, self.callback_metrics = 0, [], {}
        self.should_stop, self.result = False, None
        self._earlier = set()
        self._clients = Clients(grid, self.round_timeout)
        self._grid = OrderedGrid(grid, self._clients.ordered)

    # A round

    def _run_round(self, evaluate: Any) -> None:
        self._call("on_round_start")
        wait_for_clients(self._grid, self.strategy, self.round_timeout)
        record = to_record(self.arrays)
        trained = self._train(record)
        record = to_record(self.arrays)
        metrics, rejected = self._evaluate(record)
        metrics = {**trained.metrics, **metrics}
        if evaluate is not None:
            metrics |= self._central(evaluate)
        rejected = sorted([*trained.rejected, *rejected], key=lambda r: (r.client_id, r.reason, r.key))
        if not any(isinstance(callback, RoundProgressBar) for callback in self.callbacks):
            for rejection in rejected:
                log.warning("%s", rejection)
        self.note(
            RoundRecord(
                self.current_round,
                sampled=trained.sampled,
                accepted=trained.accepted,
                rejected=tuple(rejected),
                digest=digest(self.arrays),
                metrics=metrics,
                void=trained.void,
            )
        )
        self._call("on_round_end")

    def _train(self, record: ArrayRecord) -> RoundRecord:
        exchange = self._exchange(
            self.strategy.configure_train,
            record,
            lambda reply, client, r: screen_train_reply(reply, client, r, self.arrays, self.max_update_norm),
            "train",
        )
        metrics_of: dict[str, Any] = {}
        if getattr(self.strategy, "order_free", False) and not exchange.anonymous:
            new, metrics = self._aggregate(self._passing(exchange.accepted(), metrics_of))
            common, odd = common_metrics(metrics_of, self.current_round)
        else:
            replies = exchange.collect()
            metrics_of = {client: update.metrics for client, _, update in replies}
            common, odd = common_metrics(metrics_of, self.current_round)
            enough = len(replies) >= self.min_accepted
            messages = [_with_metrics(self._translated(reply), common) for _, reply, _ in replies]
            new, metrics = self._aggregate(messages) if enough else (None, None)
        void = new is None or len(metrics_of) < self.min_accepted
        if void:
            log.warning(
                "round %d is void: %d of %d updates count, `min_accepted` is %d; the model stays as it was",
                *(self.current_round, len(metrics_of), len(exchange.messages), self.min_accepted),
            )
        elif new is not None:
            self.arrays = self._conformed(new)
        self._call("on_replies")
        accepted = {client: exchange.stages.get(client, {}) for client in metrics_of}
        pooled, unpooled = pool_metrics(self.model, accepted, self.current_round)
        return RoundRecord(
            self.current_round,
            sampled=tuple(exchange.sampled),
            accepted=tuple(sorted(metrics_of)),
            rejected=tuple(exchange.rejected + odd + unpooled),
            metrics=_scalars(metrics)
            | average_scalars(metrics_of, accepted, "validate")
            | pooled
            | {
                "clients_accepted": float(len(metrics_of)),
                "clients_rejected": float(len({r.client_id for r in exchange.rejected} - {*metrics_of})),
                "bytes_down": float(exchange.bytes_down),
                "bytes_up": float(exchange.bytes_up),
            },
            void=void,
        )

    def _evaluate(self, record: ArrayRecord) -> tuple[dict[str, float], list[Rejection]]:
        exchange = self._exchange(self.strategy.configure_evaluate, record, screen_evaluate_reply, "evaluate")
        if not exchange.messages:
            return {}, []
        replies = exchange.collect()
        common, odd = common_metrics({client: read[0] for client, _, read in replies}, self.current_round)
        with self._seeded("aggregate-evaluate"):
            metrics = self.strategy.aggregate_evaluate(
                self.current_round, [_with_metrics(reply, common) for _, reply, _ in replies]
            )
        accepted = {client: exchange.stages.get(client, {}) for client, _, _ in replies}
        pooled, unpooled = pool_metrics(self.model, accepted, self.current_round)
        return _scalars(metrics) | pooled, exchange.rejected + odd + unpooled

    def _exchange(
        self, configure: Callable[..., Iterable[Message]], record: ArrayRecord, screen: Any, purpose: str
    ) -> RoundExchange[Any]:
        foreign = not getattr(self.strategy, "reads_every_dtype", False) and dialect.needs_translation(record)
        given = dialect.readable(record) if foreign else record
        config = ConfigRecord({"run-seed": self.seed, "server-round": self.current_round})
        if named_metrics(self.model):
            config[ASK] = True
        with self._seeded(f"configure-{purpose}"):
            messages = list(configure(self.current_round, given, config, self._grid))
        if foreign:
            dialect.put_back(messages, given, record)
        exchange = RoundExchange(
            self._grid,
            self._clients,
            messages,
            self.current_round,
            screen,
            self.round_timeout,
            self.on_bad_update == "raise",
            lambda reply: self._call("on_reply", reply if purpose == "train" else None),
            self._earlier,
        )
        if messages:
            self._call("on_messages", exchange.sampled)
        return exchange

    def _passing(
        self, accepted: Iterator[tuple[str, Message, ClientUpdate]], metrics_of: dict[str, Any]
    ) -> Iterator[Message]:
        for client, reply, update in accepted:
            metrics_of[client] = update.metrics
            del update
            yield reply
            del reply

    def _aggregate(self, replies: Iterable[Message]) -> tuple[Arrays | None, MetricRecord | None]:
        with self._seeded("aggregate-train"):
            record, metrics = self.strategy.aggregate_train(self.current_round, replies)
        return (None if record is None else from_record(record)), metrics

    def _translated(self, reply: Message) -> Message:
        if getattr(self.strategy, "reads_every_dtype", False):
            return reply
        return dialect.readable_reply(reply)

    def _conformed(self, new: Arrays) -> Arrays:
        name = type(self.strategy).__name__
        wrong = [k for k, a in self.arrays.items() if k not in new or new[k].shape != a.shape]
        if wrong or len(new) != len(self.arrays):
            raise LightningFLError(f"{name} gave arrays that do not fit the model, at {wrong or list(new)}")
        if broken := [key for key, array in new.items() if not is_finite(array)]:
            raise LightningFLError(
                f"{name} made weights that are not finite in round {self.current_round}, at {broken[:3]},"
                " from updates that were. The model of the round before is the last good one."
            )
        return conform(new, self.arrays)

    # Around it

    def _central(self, evaluate: Any) -> dict[str, float]:
        self._write_model()
        with self._seeded("evaluate"):
            return evaluate_centrally(self.model, evaluate)

    def _write_model(self) -> None:
        tensors = self.exchange.unpack(self.arrays, self.model.state_dict())
        self.model.load_state_dict(tensors, strict=False)

    def note(self, record: RoundRecord) -> None:
        """Add a round's record, and hand its metrics to the loggers."""
        self.rounds.append(record)
        self.callback_metrics.update(record.metrics)
        for logger in self.loggers:
            logger.log_metrics(dict(record.metrics), step=record.server_round)
            logger.save()

    def _seeded(self, purpose: str) -> Any:
        return seeded(derive_seed(self.seed, self.current_round, "", purpose))

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(self, *args)
            except Exception as error:
                raise CallbackError(
                    f"{type(callback).__name__}.{hook} raised in round {self.current_round}:"
                    f" {type(error).__name__}: {error}"
                ) from error

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Tell the callbacks and loggers of an error, and keep Flower's own narration out of the way."""
        narrator = logging.getLogger("flwr")
        level = narrator.level
        narrator.setLevel(logging.WARNING)
        try:
            yield
        except BaseException as error:
            for callback in self.callbacks:
                callback.on_exception(self, error)
            for logger in self.loggers:
                logger.finalize("failed")
            raise
        finally:
            narrator.setLevel(level)


class CallbackError(LightningFLError):
    """A callback raised; the message names it, the hook and the round."""


def _with_metrics(reply: Message, keys: set[str]) -> Message:
    for name, record in reply.content.metric_records.items():
        kept = {k: v for k, v in record.items() if k in keys or k == "num-examples"}
        reply.content[name] = MetricRecord(kept)
    return reply


def _scalars(metrics: MetricRecord | None) -> dict[str, float]:
    return {k: float(v) for k, v in (metrics or {}).items() if not isinstance(v, list)}
