"""`FederatedTrainer`: the server's Trainer, in Lightning's words."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.arguments import choice, folder, limit, metric_name, whole_number
from lightning_fl_ext.metric_names import doubt_of
from lightning_fl_ext.metrics.discovery import require_names, weights_of
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.server.callbacks.base import RoundCallback, call_hook
from lightning_fl_ext.server.callbacks.checkpoint import RoundCheckpoint
from lightning_fl_ext.server.callbacks.ledger import RoundLedger
from lightning_fl_ext.server.callbacks.progress import RoundProgressBar
from lightning_fl_ext.server.durability.checkpoint import fingerprint, load_checkpoint
from lightning_fl_ext.server.durability.lock import folder_lock
from lightning_fl_ext.server.durability.logged_rounds import LoggedRounds
from lightning_fl_ext.server.durability.strategy_state import copy_strategy
from lightning_fl_ext.server.metrics.central_evaluation import (
    check_evaluation,
    evaluate_centrally,
    warn_of_unseen,
)
from lightning_fl_ext.server.metrics.sites import require_sites
from lightning_fl_ext.server.record import RoundRecord, require_metric
from lightning_fl_ext.server.reporting import log_record, refuse_if_all_void, reporting, warn_of
from lightning_fl_ext.server.result import FederatedResult
from lightning_fl_ext.server.rounds.driver import StrategyDriver
from lightning_fl_ext.server.screening.limits import Limits
from lightning_fl_ext.server.screening.rejection import sort_rejections
from lightning_fl_ext.server.strategies import ExactFedAvg
from lightning_fl_ext.server.trainer_arguments import (
    callback_list,
    check_ckpt_path,
    check_grid,
    exchange_object,
    limits_object,
    logger_list,
    make_module,
    site_modes,
    strategy_object,
    train_settings,
)
from lightning_fl_ext.wire import Exchange, WeightExchange
from lightning_fl_ext.wire.loading import load_weights

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
        monitor: Metric to go by: the result names the best round by it, and :class:`RoundCheckpoint` and
            :class:`RoundEarlyStopping` use it unless they have one of their own.
        mode: Whether a ``"min"`` or ``"max"`` of ``monitor`` is best.
        limits: What one reply of a client may hold at most; None for the defaults of :class:`Limits`.
        site_metrics: By metric, whether a ``"min"`` or ``"max"`` of it is best. Each round's metrics have
            ``<name>/worst``, ``<name>/best`` and ``<name>/spread`` of the sites' own values.
        average_metrics: Names of the module's torchmetrics (or of the collections that hold them) whose
            values are averaged over the clients, weighted by their examples, instead of computed from pooled
            states: for a metric with a constant that depends on the client's data.
        train_config: Settings that clients are told with each training message, by name; or a function that
            gives them for a round. ``learning-rate`` and ``proximal-mu`` are known to all clients.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: An argument is not one of the above.

    Attributes:
        strategy: The strategy at work. Each fit starts with a copy of the one that was given.
        current_round: The current round, from 1.
        ckpt_path: What the current fit was told to go on from, if anything.
        callback_metrics: The last value of every metric.
        rounds: Records of the rounds so far.
        result: What :meth:`fit` returned last; None before.
        run_id: Tells clients one run from another. A fit draws a new one, unless it goes on from a
            checkpoint; nothing that is computed depends on it.
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
        monitor: str | None = None,
        mode: str = "min",
        limits: Limits | None = None,
        site_metrics: Mapping[str, str] | None = None,
        average_metrics: Collection[str] = (),
        train_config: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
    ) -> None:
        self.max_rounds = whole_number("max_rounds", max_rounds, 0)
        self.strategy = self._strategy = strategy_object(ExactFedAvg() if strategy is None else strategy)
        self.seed = whole_number("seed", seed, 0)
        self.callbacks = callback_list(callbacks, enable_progress_bar)
        self.loggers = logger_list(logger)
        self.default_root_dir = folder("default_root_dir", default_root_dir)
        self.min_accepted = whole_number("min_accepted", min_accepted, 1)
        self.on_bad_update = choice("on_bad_update", on_bad_update, ("exclude", "raise"))
        self.max_update_norm = limit("max_update_norm", max_update_norm)
        self.round_timeout = limit("round_timeout", round_timeout, zero=True)
        self.exchange = exchange_object(WeightExchange() if exchange is None else exchange)
        self.monitor = None if monitor is None else metric_name(monitor)
        self.mode = choice("mode", mode, ("min", "max"))
        if doubt := doubt_of(self.monitor, self.mode):
            warn_once(log, "", doubt)
        self.limits = limits_object(Limits() if limits is None else limits)
        self.site_metrics = site_modes(site_metrics or {})
        require_names("average_metrics", average_metrics)
        self.average_metrics = tuple(average_metrics)
        self.train_config = train_settings({} if train_config is None else train_config)
        if enable_progress_bar and not any(isinstance(c, RoundProgressBar) for c in self.callbacks):
            self.callbacks.insert(0, RoundProgressBar())
        # As in Lightning, checkpoints are written last, when the other callbacks' state is what it will be.
        self.callbacks.sort(key=lambda callback: isinstance(callback, RoundCheckpoint))
        self.should_stop = False
        self.current_round = 0
        self.ckpt_path: str | Path | None = None
        self.run_id = secrets.token_hex(16)
        self.fingerprint: dict[str, Any] = {}
        self.callback_metrics: dict[str, float] = {}
        self.rounds: list[RoundRecord] = []
        self.result: FederatedResult | None = None
        self.arrays: Arrays = {}

    # The fit

    def fit(
        self,
        model: torch.nn.Module | Callable[[], torch.nn.Module],
        grid: Grid,
        evaluate: Any = None,
        ckpt_path: str | Path | None = None,
        test: Any = None,
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
            test: Whether all clients test the final model, by ``Trainer.test``. Data, or a function from the
                module to metrics, have the server test it besides.

        Returns:
            The model with the final weights, the records of all rounds and of the test, and the digest.

        Raises:
            LightningFLError: Too few clients, a checkpoint of another run, a bad update under
                ``on_bad_update="raise"``, an error in a callback, another run that is at work in
                ``default_root_dir``, no such metric as ``monitor`` in the first
                round, or nothing but void rounds. Checkpoints of the rounds before stay.
        """
        check_ckpt_path(ckpt_path, self.callbacks)
        self._begin(model, grid, ckpt_path)
        self.run_id = secrets.token_hex(16)
        check_evaluation(self.model, evaluate)
        tests = test is not None and test is not False
        on_server = test if tests and test is not True else None
        check_evaluation(self.model, on_server, "test")
        writes = any(isinstance(callback, RoundCheckpoint | RoundLedger) for callback in self.callbacks)
        with reporting(self), folder_lock(self.default_root_dir) if writes else nullcontext():
            if ckpt_path is not None:
                load_checkpoint(self, ckpt_path)
            if evaluate is not None:
                warn_of_unseen(self.model, self._tensors())
            call_hook(self, "on_fit_start")
            if self.current_round == 0 and evaluate is not None:
                metrics = self._evaluate_centrally(evaluate)
                self.add_record(RoundRecord(0, digest=digest(self.arrays), metrics=metrics))
            try:
                while self.current_round < self.max_rounds and not self.should_stop:
                    self.current_round += 1
                    self._run_round(evaluate)
            finally:
                self._driver.calls.end_fit()
            refuse_if_all_void(self)
            self._write_model()
            tested = self._evaluate("test", on_server) if tests else None
            rounds, final = tuple(self.rounds), digest(self.arrays)
            self.result = FederatedResult(self.model, rounds, final, self.monitor, self.mode, tested)
            call_hook(self, "on_fit_end")
        return self.result

    def validate(
        self, model: torch.nn.Module | Callable[[], torch.nn.Module], grid: Grid, evaluate: Any = None
    ) -> dict[str, float]:
        """Validate a model once: on the clients, and on the server if asked to.

        Of the callbacks' hooks only ``on_messages``, ``on_evaluation_reply`` and ``on_exception`` are
        called.

        Args:
            model: See :meth:`fit`.
            grid: See :meth:`fit`.
            evaluate: See :meth:`fit`.

        Returns:
            Metrics by name; those of the server prefixed with ``server_``. ``trainer.rounds[0]`` says who was
            left out.

        Raises:
            LightningFLError: Too few clients.
        """
        return self._evaluate_once("validate", model, grid, evaluate)

    def test(
        self, model: torch.nn.Module | Callable[[], torch.nn.Module], grid: Grid, test: Any = None
    ) -> dict[str, float]:
        """Test a model once: on all clients, by ``Trainer.test``, and on the server if asked to.

        As :meth:`validate`, which see; ``test`` is what :meth:`fit` takes by that name.

        Raises:
            LightningFLError: Too few clients, or all of them failed: there is no ``test_step``, say.
        """
        return self._evaluate_once("test", model, grid, None if test is True else test)

    def _evaluate_once(self, stage: str, model: Any, grid: Grid, on_server: Any) -> dict[str, float]:
        self._begin(model, grid)
        check_evaluation(self.model, on_server, "test" if stage == "test" else "evaluate")
        with reporting(self):
            if on_server is not None:
                warn_of_unseen(self.model, self._tensors())
            record = self._evaluate(stage, on_server)
            self.rounds.append(record)
        return dict(record.metrics)

    def _evaluate(self, stage: str, on_server: Any) -> RoundRecord:
        """Have the weights as they are evaluated outside the rounds, and tell loggers and callers."""
        record = self._driver.evaluate(self.current_round, self.arrays, stage)
        metrics = dict(record.metrics)
        if on_server is not None:
            metrics |= self._evaluate_centrally(on_server, stage)
        rejected = sort_rejections(record.rejected)
        record = replace(record, rejected=rejected, digest=digest(self.arrays), metrics=metrics)
        self.callback_metrics.update(record.metrics)
        log_record(self, record, None)
        warn_of(self, record)
        return record

    def _begin(self, model: Any, grid: Grid, ckpt_path: str | Path | None = None) -> None:
        check_grid(grid)
        with seeded(derive_seed(self.seed, 0, "", "init")):
            self.model = make_module(model)
        self.arrays = self.exchange.start(weights_of(self.model))
        self.strategy = copy_strategy(self._strategy)
        self.current_round, self.rounds, self.callback_metrics = 0, [], {}
        self.should_stop, self.result, self.ckpt_path = False, None, ckpt_path
        self.fingerprint = fingerprint(self)
        self._logged: LoggedRounds | None = None
        self._driver = StrategyDriver(self, grid, partial(call_hook, self))

    # A round

    def _run_round(self, evaluate: Any) -> None:
        call_hook(self, "on_round_start")
        self.arrays, trained = self._driver.train(self.current_round, self.arrays)
        call_hook(self, "on_replies")
        record = self._driver.evaluate(self.current_round, self.arrays)
        evaluated = dict(record.metrics)
        # A name that is an evaluation's stays so, also in a round whose evaluations are missing.
        shared = evaluated.keys() | self._driver.validated_in_fits
        shared |= {k for k in trained.metrics if f"fit_{k}" in self.callback_metrics}
        metrics = {f"fit_{k}" if k in shared else k: v for k, v in trained.metrics.items()} | evaluated
        if evaluate is not None:
            metrics |= self._evaluate_centrally(evaluate)
        rejections = sort_rejections([*trained.rejected, *record.rejected])
        self.add_record(
            replace(
                trained,
                rejected=rejections,
                digest=digest(self.arrays),
                metrics=metrics,
                sites=record.sites,
            )
        )
        if not any(isinstance(callback, RoundProgressBar) for callback in self.callbacks):
            warn_of(self, self.rounds[-1])
        call_hook(self, "on_round_end")
        if self.site_metrics and self.current_round == 1 and not trained.void:
            require_sites(record.sites, self.site_metrics)
        if self.monitor is not None:
            require_metric(self.rounds, self.monitor)

    # Around it

    def _evaluate_centrally(self, evaluate: Any, stage: str = "validate") -> dict[str, float]:
        self._write_model()
        purpose = "test" if stage == "test" else "evaluate"
        with seeded(derive_seed(self.seed, self.current_round, "", purpose)):
            return evaluate_centrally(self.model, evaluate, self.current_round, stage)

    def _write_model(self) -> None:
        load_weights(self.model, self._tensors())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return self.exchange.unpack(self.arrays, weights_of(self.model))

    def add_record(self, record: RoundRecord) -> None:
        """Add a round's record, and hand its metrics to the loggers."""
        self.rounds.append(record)
        self.callback_metrics.update(record.metrics)
        if self._logged is None:  # not before: a run that goes on has its id from the checkpoint
            keeps = any(isinstance(callback, RoundCheckpoint) for callback in self.callbacks)
            folder = self.default_root_dir if keeps else None
            self._logged = LoggedRounds(folder, self.run_id, self.current_round, self.max_rounds)
        log_record(self, record, self._logged)
