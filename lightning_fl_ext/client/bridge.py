"""`FlowerBridge`: a Trainer callback that turns a local fit into a client's part of a federated round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from lightning_fl_ext.client.counting import ExampleCounter
from lightning_fl_ext.client.handover import Handover
from lightning_fl_ext.client.refusals import refuse_to_follow_averaging, refuse_zero3
from lightning_fl_ext.client.retention import Retention
from lightning_fl_ext.client.state import is_sharded, read_state, undo_precision, write_state
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, ClientUpdate, EpochResult, order_results
from lightning_fl_ext.wire import Exchange, WeightExchange

if TYPE_CHECKING:
    from flwr.app import Context, Message

log = logging.getLogger(__name__)


class FlowerBridge(Callback):
    """Packages each epoch's weights as ordered results, and connects a local fit to Flower.

    Alone, it keeps the weights of every epoch with their true number of examples. Made with
    :meth:`from_message` it also loads the global weights before the fit and answers with :meth:`reply`.
    It works in ``lightning.pytorch`` and in ``pytorch_lightning``, under any strategy but DeepSpeed ZeRO-3,
    and in ``Trainer.validate`` and ``Trainer.test`` as well, where the reply holds the metrics alone.

    Place it before weight averaging callbacks: they copy the module in ``setup``, and would bring the
    weights from before the load back at the end.

    Args:
        keep: How many epochs to keep: ``"all"``, ``"last"`` or a number.
        submit: What the update holds: the ``"last"`` weights (those in the module after the fit, so under
            weight averaging the averaged ones), the exact ``"mean"`` over the kept epochs weighted by their
            examples, or the ``"best"`` epoch by ``monitor``.
        monitor: Logged metric that chooses the best epoch.
        mode: Whether a ``"min"`` or ``"max"`` of ``monitor`` is best.
        spool_dir: Folder to keep epochs in as safetensors files, instead of in memory.
        batch_size: Gives the number of examples in a batch, where Lightning's own guess (the first dimension
            of the first tensor) is wrong.
        exchange: What of the model travels. Default: all of it.
        client_id: The client's name in results and replies.

    Raises:
        ValueError: An argument is not one of the above; or, when a fit starts, an averaging callback precedes
            the bridge.

    Example:
        >>> import lightning.pytorch as L, torch
        >>> class Lit(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...     def training_step(self, batch, _):
        ...         return self.layer(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), 0.1)
        >>> bridge = FlowerBridge(client_id="site-a")
        >>> quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar",
        ...                        "enable_model_summary"), False)
        >>> trainer = L.Trainer(max_epochs=3, callbacks=[bridge], accelerator="cpu", **quiet)
        >>> trainer.fit(Lit(), torch.utils.data.DataLoader(torch.ones(10, 1), batch_size=4))
        >>> [(name, len(arrays), n) for name, arrays, n in bridge.ordered_results()]
        [('site-a', 2, 10), ('site-a', 2, 10), ('site-a', 2, 10)]
        >>> bridge.update
        ClientUpdate(num_examples=10, ..., client_id='site-a', ..., examples_seen=30, steps=9, epochs=3)
    """

    _counter: ExampleCounter
    _update: ClientUpdate | None
    _failure: str | None
    _metrics: dict[str, float]
    _evaluated: int | None
    _epochs: int

    def __init__(
        self,
        keep: str | int = "all",
        submit: str = "last",
        monitor: str | None = None,
        mode: str = "min",
        spool_dir: str | None = None,
        batch_size: Callable[[Any], int] | None = None,
        exchange: Exchange | None = None,
        client_id: str = "",
    ) -> None:
        if submit not in ("last", "mean", "best"):
            raise ValueError(f"`submit` must be 'last', 'mean' or 'best'. Got {submit!r}.")
        if submit == "best" and monitor is None:
            raise ValueError("`submit='best'` needs a metric: pass `monitor=`, or choose another `submit`.")
        self.submit = submit
        self.batch_size = batch_size
        self.exchange = exchange or WeightExchange()
        self.client_id = client_id
        self.server_round = 0
        self._retention = Retention(keep, monitor if submit == "best" else None, mode, spool_dir)
        self._handover = Handover()
        self._global: Arrays | None = None
        self._message: Message | None = None
        self._reset()

    # What went in and what came out

    @classmethod
    def from_message(cls, message: Message, context: Context, **options: Any) -> FlowerBridge:
        """Make the bridge for one message to a ``ClientApp``.

        Args:
            message: A train or evaluate message; its array record holds the global weights.
            context: Gives the client's id.
            **options: Arguments of the class. ``keep`` defaults to ``"last"``, unless ``submit`` is
                ``"mean"``.

        Raises:
            LightningFLError: The message does not hold exactly one array record.
        """
        from lightning_fl_ext.client.identity import client_id
        from lightning_fl_ext.client.messages import read_instruction

        options.setdefault("keep", "all" if options.get("submit") == "mean" else "last")
        options.setdefault("client_id", client_id(context))
        bridge = cls(**options)
        bridge.receive(*read_instruction(message))
        bridge._message = message
        return bridge

    def receive(self, arrays: Arrays, server_round: int = 0) -> None:
        """Take the weights the next fit, validation or test starts from.

        Args:
            arrays: As the server's exchange packed them.
            server_round: The round they belong to.
        """
        self._global = arrays
        self.server_round = server_round

    @property
    def results(self) -> list[EpochResult]:
        """The kept epochs' results, by epoch. After a fit that raised: those of the complete epochs."""
        left = self._handover.collect()
        return self._retention.results if left is None else left[0]

    def ordered_results(self) -> list[tuple[str, list[NDArray[Any]], int]]:
        """Give the kept results in the deterministic order.

        Returns:
            ``(client id, arrays, num_examples)``, sorted by score as by
            :func:`~lightning_fl_ext.decode_and_pseudo_sort_results`.
        """
        return [
            (self.client_id, list(r.arrays.values()), r.num_examples) for r in order_results(self.results)
        ]

    @property
    def update(self) -> ClientUpdate:
        """What the client hands in.

        Raises:
            LightningFLError: No fit has ended, or the last one raised.
        """
        left = self._handover.collect()
        update = self._update if left is None else left[1]
        if update is None:
            raise LightningFLError(f"client `{self.client_id}` has no update: {self._why_none()}")
        return update

    @property
    def metrics(self) -> dict[str, float]:
        """The scalars the last fit, validation or test had logged at its end."""
        left = self._handover.collect()
        return dict(self._metrics if left is None else left[1].metrics)

    def reply(self) -> Message:
        """Build the reply to the message the bridge was made from.

        Raises:
            LightningFLError: The bridge was not made by :meth:`from_message`, or there is no update.
        """
        from lightning_fl_ext.client.messages import evaluate_reply, train_reply

        if self._message is None:
            raise LightningFLError(
                "`reply()` needs a message to answer: make the bridge with `from_message`."
            )
        if self._message.metadata.message_type.split(".")[0] == "evaluate":
            if self._evaluated is None:
                raise LightningFLError(
                    f"client `{self.client_id}` has no evaluation to reply with: run `Trainer.validate` or"
                    " `Trainer.test` with this bridge among the callbacks first."
                )
            return evaluate_reply(
                self._message, self.metrics, self._evaluated, self.client_id, self.server_round
            )
        return train_reply(self._message, self.update)

    # The hooks

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation begins: checks its place and loads what was received."""
        refuse_zero3(trainer)
        if stage == "fit":
            refuse_to_follow_averaging(self, trainer.callbacks)
            self._retention.start()
            self._handover.clear()
            self._reset()
        else:
            self._counter, self._evaluated = ExampleCounter(self.batch_size), None
        state = pl_module.state_dict()
        if state and not any(t.is_meta for t in state.values() if isinstance(t, torch.Tensor)):
            self._load(trainer, pl_module, dict(state))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when the module is built and placed: loads again what was received."""
        self._load(trainer, pl_module, undo_precision(trainer, read_state(trainer, pl_module), self._global))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a validation begins: outside a fit, loads again what was received."""
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a test begins: loads again what was received."""
        self.on_fit_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after a training batch: counts its examples."""
        self._counter.add(batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after a validation batch: outside a fit, counts its examples."""
        if trainer.state.fn == "validate":
            self._counter.add(batch)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after a test batch: counts its examples."""
        self._counter.add(batch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when an epoch ends, before any weight averaging: snapshots the weights."""
        num_examples = self._counter.close_epoch(trainer)
        self._epochs += 1
        arrays = self._pack(trainer, pl_module)
        if trainer.is_global_zero:
            self._retention.add(
                EpochResult(arrays, num_examples, epoch=trainer.current_epoch, metrics=_scalars(trainer))
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when training ends: under a sharded strategy the last moment to collect the weights."""
        if is_sharded(trainer):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when the fit ends, after every averaging callback: makes the update."""
        if not is_sharded(trainer):
            self._finish(trainer, pl_module)
        self._metrics = _scalars(trainer)
        if self._update is not None:
            self._handover.leave(trainer, self._retention.results, self._update)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Called when the fit raised: says what the bridge still holds."""
        self._update = None
        self._failure = f"the fit raised {type(exception).__name__}: {exception}"
        log.warning("`FlowerBridge` of client `%s`: %s", self.client_id, self._why_none())

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Called when a fit or evaluation ends well: notes the metrics of an evaluation."""
        if stage in ("validate", "test"):
            self._evaluated = self._counter.close_epoch(trainer)
            self._metrics = _scalars(trainer)

    # How

    def _reset(self) -> None:
        self._counter = ExampleCounter(self.batch_size)
        self._update = None
        self._failure = None
        self._metrics = {}
        self._evaluated = None
        self._epochs = 0

    def _load(self, trainer: Any, module: Any, state: dict[str, Any]) -> None:
        if self._global is not None:
            write_state(trainer, module, self.exchange.unpack(self._global, state))

    def _pack(self, trainer: Any, module: Any) -> dict[str, NDArray[Any]]:
        state = read_state(trainer, module)
        if is_sharded(trainer) and not trainer.is_global_zero:
            return {}
        return self.exchange.pack(undo_precision(trainer, state, self._global))

    def _finish(self, trainer: Any, module: Any) -> None:
        arrays: Arrays = self._pack(trainer, module)  # a collective under sharded strategies: on every rank
        if not trainer.is_global_zero:
            return
        if self.submit != "last" and self._retention.results:
            arrays = self._retention.mean() if self.submit == "mean" else self._retention.best().arrays
        self._update = ClientUpdate(
            arrays,
            self._counter.largest_epoch,
            client_id=self.client_id,
            server_round=self.server_round,
            examples_seen=self._counter.total,
            steps=trainer.global_step,
            epochs=self._epochs,
            metrics=_scalars(trainer),
        )

    def _why_none(self) -> str:
        if self._failure is None:
            return "no fit has ended with this bridge among the Trainer's callbacks."
        kept = self._retention.results
        held = (
            f"the bridge holds {len(kept)} complete epoch(s), the last of which is epoch {kept[-1].epoch}"
            if kept
            else "no epoch was complete"
        )
        return f"{self._failure}. Until then {held}; see `results`."

    def __getstate__(self) -> dict[str, Any]:
        # Lightning binds `log` and `log_dict` of the module to every callback; they must not travel with it.
        return {k: v for k, v in self.__dict__.items() if k not in ("log", "log_dict")}


def _scalars(trainer: Any) -> dict[str, float]:
    return {
        str(name): float(value)
        for name, value in trainer.callback_metrics.items()
        if not isinstance(value, torch.Tensor) or value.numel() == 1
    }
