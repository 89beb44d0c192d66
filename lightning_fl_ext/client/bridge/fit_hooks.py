"""The bridge's part in fits, and in how validations and tests begin and end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from lightning_fl_ext.client.algorithms.part import KEPT, AlgorithmPart
from lightning_fl_ext.client.algorithms.rate import set_learning_rate
from lightning_fl_ext.client.bridge.counting import ExampleCounter, loader_of
from lightning_fl_ext.client.bridge.evaluation_hooks import EvaluationHooks
from lightning_fl_ext.client.bridge.held import HELD
from lightning_fl_ext.client.bridge.model_state import (
    is_built_later,
    is_sharded,
    load_early,
    load_state,
    pack_state,
)
from lightning_fl_ext.client.bridge.refusals import (
    SPENT,
    averages_buffers,
    drop_gradients,
    is_averaging,
    is_spent,
    refuse_late_layers,
    refuse_other_weights,
    refuse_to_follow_averaging,
    refuse_to_train_in_vain,
)
from lightning_fl_ext.client.bridge.spawned import leave_group_at_exit
from lightning_fl_ext.client.bridge.unaveraged import Unaveraged
from lightning_fl_ext.client.bridge.unrepeated import evaluate_unrepeated, spread_as_before
from lightning_fl_ext.client.metrics.dtypes import MetricDtypes, note_dtypes, restore_dtypes
from lightning_fl_ext.client.metrics.groups import stop_guessing
from lightning_fl_ext.client.metrics.logged import count_in_floats
from lightning_fl_ext.client.notices import warn_of_known_noise, warn_of_short_accumulation, warn_of_unsharded
from lightning_fl_ext.client.results.retention import Retention
from lightning_fl_ext.client.results.store import EVALUATION, UPDATE
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described, sign
from lightning_fl_ext.metrics.discovery import unwrapped
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.results import Arrays, ClientUpdate, EpochResult
from lightning_fl_ext.seeds import derive_seed
from lightning_fl_ext.wire import Exchange, RoundInfo
from lightning_fl_ext.wire.algorithm_names import joined
from lightning_fl_ext.wire.loading import settle_spectral_norms

if TYPE_CHECKING:
    from lightning_fl_ext.client.round import ClientRound

log = logging.getLogger(__name__)


class FitHooks(EvaluationHooks):
    """Loads what was received when a run begins, and stores what comes out of it. Base of the bridge.

    Attributes:
        exchange: What of the model travels.
        batch_size: Gives the number of examples in a batch; None for the rules of
            :mod:`~lightning_fl_ext.client.bridge.batch_size`.
        local_entries: Names of the module's state-dict entries that what was received left alone. What
            belongs to metrics is not among them, nor another name of a tensor that was received.
        keeps_local: Whether another callback keeps them from round to round.
        keeps_optimizer: Whether another callback keeps optimizers and schedules from round to round.
    """

    exchange: Exchange
    batch_size: Callable[[Any], int] | None
    local_entries: list[str]
    keeps_local: bool
    keeps_optimizer: bool
    _loses_local: bool = False  # and is meant to
    _info: RoundInfo
    _round: ClientRound | None
    _global: Arrays | None
    _retention: Retention
    _counter: ExampleCounter
    _first_step: int | None
    _idle: bool
    _remedy: str
    _dtypes: dict[str, MetricDtypes]
    _part: AlgorithmPart | None = None
    _learning_rate: float | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation begins: checks its place and loads what was received."""
        leave_group_at_exit()
        evaluate_unrepeated(trainer)
        self._counter, self._evaluated = self._new_counter(), self._new_counter()
        self._metrics.begin()
        self._dtypes = note_dtypes(pl_module)
        if not is_built_later(pl_module):
            self._metrics.check(pl_module)
        if stage == "fit":
            refuse_to_follow_averaging(self, trainer.callbacks)
            refuse_to_train_in_vain(trainer)
            self._first_step, self._idle, self._unaveraged = None, is_spent(trainer), None
            if self._idle:
                log.warning("%r: %s", self, SPENT)
            else:
                self._store.start_fit(trainer)
            if any(is_averaging(callback) for callback in trainer.callbacks):
                pl_module.configure_model()  # the averaging callback is about to, and copies what it finds
        else:
            self._store.start_evaluation(trainer)
        try:
            self._load(load_early, trainer, pl_module)
        except LightningFLError:
            if not is_built_later(pl_module):
                raise
            refuse_late_layers(trainer, pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when the module is built and placed: looks at its metrics, loads again what was received."""
        self._start(trainer, pl_module)
        if any(averages_buffers(callback) for callback in trainer.callbacks) and not is_sharded(trainer):
            self._unaveraged = Unaveraged(pl_module)
        self._warn_of_schedules(trainer)
        if self._round is not None:
            warn_of_known_noise(trainer.optimizers, self._seed(), self._round.context.run_id)
        if self._part:
            refuse_other_weights(self._part.half, self._retention.submit, trainer.callbacks)
            names = self._global or {}
            told = (names, self.client_id, self._info.server_round, self.keeps_local)
            self._part.start(trainer, pl_module, self.local_entries, *told)
        self._warn_of_lost(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when training begins: notes where the Trainer's count of steps stands."""
        self._first_step = trainer.global_step
        if trainer.is_global_zero:
            warn_of_short_accumulation(trainer, self._run)
        if trainer.world_size > 1 and trainer.is_global_zero:
            warn_of_unsharded(trainer, self._run)
        if self._learning_rate is not None:
            set_learning_rate(trainer, self._learning_rate)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation begins: outside a fit, as when a fit begins."""
        if trainer.state.fn == "validate":
            self._start(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a test begins: as when a fit begins."""
        self._start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called before a training batch: listens to how many examples the module says it holds."""
        self._reported.listen(pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called before each step of an optimizer: the algorithm's part in it."""
        if getattr(trainer.fit_loop, "_skip_backward", False):
            drop_gradients(optimizer)
        if self._part:
            self._part.hooks.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after a training batch: counts its examples."""
        count_in_floats(trainer)
        loader = loader_of(trainer, "fit")
        self._counter.add(batch, loader=loader, batch_idx=batch_idx, reported=self._reported.stop())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when an epoch ends, before any weight averaging: snapshots the weights."""
        num_examples = self._counter.close_epoch(trainer)
        self._metrics.take("train", trainer, pl_module, self._counter.by_dataloader)
        arrays = pack_state(trainer, pl_module, self.exchange, like=self._global)
        metrics = _scalars(trainer)
        if trainer.is_global_zero:
            result = EpochResult(arrays, num_examples, epoch=trainer.current_epoch, metrics=metrics)
            self._retention.check(result)
            self._store.add(result)
            for old in self._retention.surplus(self._store.epochs):
                self._store.remove(old)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when training ends: under a sharded strategy the last moment to collect the weights."""
        if self._part:
            self._part.hooks.on_train_end(trainer, pl_module)
        self._keep_stage("train", trainer, pl_module)
        if self._unaveraged:
            self._unaveraged.note(pl_module)  # comes before any averaging
        if is_sharded(trainer):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when the fit ends, after every averaging callback: makes the update."""
        if self._unaveraged:
            self._unaveraged.put_back(pl_module)
            self._unaveraged = None
        if any(is_averaging(callback) for callback in trainer.callbacks) and not is_sharded(trainer):
            settle_spectral_norms(pl_module)
        if not is_sharded(trainer) and not self._idle:
            self._finish(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Called when the fit or evaluation raised: withholds its outcome and says what is left.

        In a federation that goes without saying: the exception itself goes to the server.
        """
        self._reported.stop()
        fn = trainer.state.fn.value
        reason = f"`Trainer.{fn}` raised {described(exception)}"
        said = self._store.fail(UPDATE if fn == "fit" else EVALUATION, reason)
        if self._message is None:
            log.warning("%s", said)
        else:
            sign(exception, self.client_id)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation ends well: notes what an evaluation found."""
        spread_as_before(trainer)
        if stage in ("validate", "test"):
            num_examples = self._evaluated.largest_epoch
            self._hold(trainer, EVALUATION, {}, num_examples, {"examples_seen": num_examples})

    def _new_counter(self) -> ExampleCounter:
        return ExampleCounter(self.batch_size, strict=self._global is not None, remedy=self._remedy)

    def _start(self, trainer: Any, module: Any) -> None:
        restore_dtypes(module, self._dtypes)
        stop_guessing(module)
        with torch.inference_mode(False):  # under which tensors made of others have no state dict
            self._metrics.check(module)
            self._load(load_state, trainer, module)

    def _load(self, load: Callable[..., list[str]], trainer: Any, module: Any) -> None:
        if self._global is not None and not self._store.has(UPDATE):
            self.local_entries = load(trainer, module, self.exchange, self._global)

    def _seed(self) -> int:
        """What all randomness of a fit or evaluation follows from, where it is seeded."""
        kind = "train" if self._message is None else self._message.metadata.message_type.split(".")[0]
        return derive_seed(self._info.run_seed, self._info.server_round, self.client_id, kind)

    def _warn_of_lost(self, module: Any) -> None:
        """Name what is trained and then lost, if another message's fit begins without it."""
        if self.keeps_local or self._loses_local or self._message is None or not self.local_entries:
            return
        trained = {unwrapped(n) for n, parameter in module.named_parameters() if parameter.requires_grad}
        lost = [name for name in self.local_entries if name in trained]
        if lost:
            text = (
                f"{self!r}: {len(lost)} trainable parameter(s) neither travel nor are kept, so what a fit"
                f" makes of them is lost: {', '.join(lost[:8])}{', …' if len(lost) > 8 else ''}. Have them"
                " travel (`exchange`), use `client_app`, which keeps them, or keep the module's entries in"
                " `bridge.local_entries` yourself and set `bridge.keeps_local = True`."
            )
            warn_once(log, self._message.metadata.run_id, text, topic=f"lost: {lost}")

    def _warn_of_schedules(self, trainer: Any) -> None:
        """Say that a schedule starts anew with every message."""
        kinds = sorted({type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs})
        if kinds and self._round is not None and not self.keeps_optimizer and self._round.max_rounds != 1:
            text = (
                f"the learning-rate schedule ({', '.join(kinds)}) starts anew in each round, and so do"
                " `current_epoch` and `global_step`. `client_app(keep_optimizer=True)` has all of them go on"
                " over the whole run."
            )
            warn_once(log, self._round.context.run_id, text, topic="schedule")

    def _finish(self, trainer: Any, module: Any) -> None:
        arrays: Arrays = pack_state(trainer, module, self.exchange, like=self._global)
        # Not on the other ranks: rank 0 may still be removing files that they would read.
        if trainer.is_global_zero and self._retention.submit != "last" and (epochs := self._store.epochs):
            arrays = self._retention.submitted(epochs)
        counts = {
            "examples_seen": self._counter.total,
            "steps": 0 if self._first_step is None else trainer.global_step - self._first_step,
            "epochs": self._counter.epochs,
        }
        if self._part and trainer.is_global_zero:
            arrays = joined(arrays, self._part.sent)
            self._store.put(KEPT, ClientUpdate(self._part.kept, 0))
        self._hold(trainer, UPDATE, arrays, self._counter.largest_epoch, counts)

    def _hold(
        self, trainer: Any, kind: str, arrays: Arrays, num_examples: int, counts: Mapping[str, int]
    ) -> None:
        metrics = self._metrics.told(_scalars(trainer))
        if not trainer.is_global_zero:
            return
        outcome = ClientUpdate(
            arrays,
            num_examples,
            client_id=self.client_id,
            server_round=self._info.server_round,
            metrics=metrics,
            **counts,
        )
        self._store.put(kind, outcome)
        if self._global is not None and (kept := self.exchange.keepsake(self._global)):
            self._store.put(HELD, ClientUpdate(kept, 0))  # read with the module, which may be elsewhere


def _scalars(trainer: Any) -> dict[str, float]:
    """Read the logged scalars. Those with ``sync_dist`` may be reduced here: every rank makes this call."""
    return {
        str(name): float(value)
        for name, value in trainer.callback_metrics.items()
        if not isinstance(value, torch.Tensor) or value.numel() == 1
    }
