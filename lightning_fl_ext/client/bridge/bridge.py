"""`FlowerBridge`: a Trainer callback that turns a local fit into a client's part of a federated round."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.choice import algorithm_of, check_halves, check_received
from lightning_fl_ext.client.algorithms.memory import ContextMemory
from lightning_fl_ext.client.algorithms.part import KEPT, AlgorithmPart
from lightning_fl_ext.client.algorithms.rate import learning_rate_of
from lightning_fl_ext.client.bridge.counting import REMEDY
from lightning_fl_ext.client.bridge.fit_hooks import FitHooks
from lightning_fl_ext.client.bridge.held import HELD, read_held, write_held
from lightning_fl_ext.client.bridge.reported_size import ReportedSize
from lightning_fl_ext.client.bridge.script_launcher import guard_script_launchers
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.messages import (
    outcome_kind,
    outcome_reply,
    read_counted,
    read_instruction,
    read_max_rounds,
    read_run_id,
    read_settings,
)
from lightning_fl_ext.client.metrics.collector import MetricCollector
from lightning_fl_ext.client.notices import warn_of_untold_round
from lightning_fl_ext.client.results.retention import Retention
from lightning_fl_ext.client.results.store import EVALUATION, UPDATE, ResultStore
from lightning_fl_ext.client.round import ClientRound
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import signed
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, STAGES
from lightning_fl_ext.results import Arrays, ClientUpdate, EpochResult, order_results
from lightning_fl_ext.seeds import seeded, seeded_ranks
from lightning_fl_ext.wire import Exchange, RoundInfo, WeightExchange
from lightning_fl_ext.wire.algorithm_names import joined, parted

if TYPE_CHECKING:
    from flwr.app import Context, Message


class FlowerBridge(FitHooks):
    """Packages each epoch's weights as ordered results, and connects a local fit to Flower.

    Alone, it keeps the weights of every epoch with their true number of examples. Made with
    :meth:`from_message` it also loads the global weights before the fit and answers with :meth:`reply`.
    It works in ``lightning.pytorch`` and in ``pytorch_lightning``, under any strategy, and in
    ``Trainer.validate`` and ``Trainer.test`` as well, where the reply holds the metrics alone.

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
        batch_size: Gives the number of examples in a batch. Default: the number that the module gives
            Lightning, ``self.log(..., batch_size=)``; or else what is in the batch and what its loader drew
            tell. Where they do not, a bridge that was made by :meth:`from_message` refuses the batch, and one
            alone warns once and counts the first leaf.
        exchange: What of the model travels. Default: all of it.
        client_id: The client's name in results and replies.
        allow_example_states: If the server pools metrics: names of those (or of the collections that hold
            them) whose states have one row per example and may leave the client all the same.
        exclude_metrics: If the server pools metrics: names of those (or of the collections that hold them) of
            which neither states nor values leave the client.
        min_examples: If the server pools metrics: with fewer examples in a stage, neither the states nor the
            values of its metrics leave the client.
        share_metrics: Whether the client tells the values of its own metrics. With False its replies hold
            none: metric states, and the sums and counts of plain numbers, go into the pooled values and
            nothing else. A server that does not pool metrics then gets none.

    Attributes:
        local_entries: Names of the module's state-dict entries that what was received left alone. What
            belongs to metrics is not among them, nor another name of a tensor that was received.
        keeps_local: Whether another callback keeps them from round to round.
        keeps_optimizer: Whether another callback keeps optimizers and schedules from round to round.
        personal_metrics: Metrics of a model of the client's own, for the reply.

    Raises:
        TypeError: ``exchange`` is not an exchange, or a text is given where a tuple of names is meant.
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

    def __init__(
        self,
        keep: int | str = "all",
        submit: str = "last",
        monitor: str | None = None,
        mode: str = "min",
        spool_dir: str | None = None,
        batch_size: Callable[[Any], int] | None = None,
        exchange: Exchange | None = None,
        client_id: str = "",
        allow_example_states: tuple[str, ...] = (),
        exclude_metrics: tuple[str, ...] = (),
        min_examples: int = 0,
        share_metrics: bool = True,
    ) -> None:
        self.submit = submit
        if batch_size is not None and not callable(batch_size):
            raise TypeError(
                "`batch_size` must be a function from a batch to its number of examples, such as"
                f" `lambda batch: len(batch['y'])`. Got {batch_size!r}."
            )
        self.batch_size = batch_size
        if exchange is not None and not isinstance(exchange, Exchange):
            raise TypeError(
                "`exchange` must be an exchange, such as `WeightExchange(exclude='head.*')`. Got"
                f" {exchange!r}."
            )
        self.exchange = exchange or WeightExchange()
        self.client_id = client_id
        self._info = RoundInfo(client_id=client_id)
        self._metrics = MetricCollector(allow_example_states, exclude_metrics, min_examples, share_metrics)
        self._retention = Retention(keep, submit, monitor, mode)
        self._store = ResultStore(spool_dir, owner=f"client `{client_id}`" if client_id else "this client")
        self._global: Arrays | None = None
        self._reported = ReportedSize()
        self._dtypes = {}
        self._remedy = REMEDY
        self._message: Message | None = None
        self.local_entries: list[str] = []
        self.keeps_local = self.keeps_optimizer = False
        self._round: ClientRound | None = None
        self.personal_metrics: dict[str, float] = {}

    def __repr__(self) -> str:
        shown = f"client_id={self.client_id!r}, server_round={self.server_round}, submit={self.submit!r}"
        return f"{type(self).__name__}({shown}, keep={self._retention.keep!r}, exchange={self.exchange!r})"

    # What goes in and what comes out

    @classmethod
    def from_message(
        cls,
        message: Message,
        context: Context,
        *,
        algorithms: tuple[type[ClientAlgorithm], ...] = (),
        **options: Any,
    ) -> FlowerBridge:
        """Make the bridge for one message to a ``ClientApp``.

        Does in the fit what the server's configuration asks for besides: its half of an algorithm, and the
        ``learning-rate`` of the round.

        Args:
            message: A train or evaluate message; its array record holds the global weights.
            context: Gives the client's id, and keeps what an algorithm keeps on its client.
            algorithms: Client halves besides those that every client knows.
            **options: Arguments of the class. ``keep`` defaults to ``"last"``, unless ``submit`` is
                ``"mean"``.

        Raises:
            LightningFLError: The message does not hold exactly one array record, or what no server of this
                package sends (what and which bound is told), or names an algorithm that clients do not know.
        """
        guard_script_launchers()
        options.setdefault("keep", "all" if options.get("submit") == "mean" else "last")
        options.setdefault("client_id", client_id(context))
        bridge = cls(**options)
        bridge._message = message
        with bridge._signed():
            settings, asks = read_settings(message), outcome_kind(message) == UPDATE
            half = algorithm_of(settings, check_halves(algorithms)) if asks else None
            arrays, extras, bridge._info, asked = read_instruction(
                message, bridge.client_id, bridge.exchange, read_held(context)
            )
            bridge.receive(arrays, bridge._info.server_round)
            if asks:
                check_received(half, extras)
            if half is not None:
                memory = ContextMemory(context, read_run_id(message, context), half.name)
                bridge._part = AlgorithmPart(half, extras, memory, counted := read_counted(message))
                if half.keeps and counted is None:
                    warn_of_untold_round(half.name, read_run_id(message, context))
            bridge._learning_rate = learning_rate_of(settings) if asks else None
            bridge._round = ClientRound(
                bridge.client_id,
                bridge.server_round,
                read_max_rounds(message),
                settings,
                context,
                bridge.received,
            )
        bridge._metrics.active = asked
        bridge._remedy = "`FlowerBridge.from_message(..., batch_size=...)`"
        return bridge

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Seed all global random state for a fit or evaluation written by hand, as ``client_app`` does.

        The seed follows from the server's run seed, the round, the client's id and the kind of message; at
        the end, the random state is put back as it was. Make the data inside. A module that is made inside
        draws from the same numbers: the run reproduces, to other bytes than those of ``client_app``, which
        makes modules under a seed of their own. An exception on its way out says which client it is of.

        Example:
            >>> import torch
            >>> with FlowerBridge(client_id="site-a").seeded():
            ...     first = torch.rand(1)
            >>> with FlowerBridge(client_id="site-a").seeded():
            ...     assert torch.rand(1) == first
        """
        with self._signed(), seeded(seed := self._seed()), seeded_ranks(seed):
            yield

    def receive(self, arrays: Arrays, server_round: int = 0) -> None:
        """Take the weights that the next fit starts from, and validations and tests before it.

        Args:
            arrays: As the server's exchange packed them.
            server_round: The round they belong to.
        """
        self._global = arrays
        self._info = replace(self._info, server_round=server_round)
        self._store.drop(UPDATE)

    @property
    def received(self) -> Arrays:
        """What :meth:`receive` took last."""
        return self._global or {}

    @property
    def answers_message(self) -> bool:
        """Whether it was made from a message, so that the process belongs to an engine."""
        return self._message is not None

    @property
    def server_round(self) -> int:
        """The round the received weights belong to."""
        return self._info.server_round

    @property
    def round(self) -> ClientRound:
        """What the message tells of the round.

        Raises:
            LightningFLError: The bridge was not made by :meth:`from_message`.
        """
        if self._round is None:
            raise LightningFLError("a bridge knows its round if it is made with `FlowerBridge.from_message`.")
        return self._round

    @property
    def results(self) -> list[EpochResult]:
        """The kept epochs' results, by epoch. After a fit that raised: those of its complete epochs."""
        return self._store.epochs

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
        return self._store.get(UPDATE)

    @property
    def evaluation(self) -> ClientUpdate:
        """The logged metrics of the last validation or test and its number of examples, without arrays.

        Raises:
            LightningFLError: None has ended, or the last one raised.
        """
        return self._store.get(EVALUATION)

    def reply(self) -> Message:
        """Build the reply to the message the bridge was made from: the update, or the evaluation.

        Raises:
            LightningFLError: The bridge was not made by :meth:`from_message`, or there is no outcome.
        """
        if self._message is None:
            raise LightningFLError(
                "`reply()` needs a message to answer: make the bridge with `FlowerBridge.from_message`."
            )
        with self._signed():
            outcome = self._store.get(outcome_kind(self._message))
            kept = self._store.get(HELD).arrays if self._store.has(HELD) else {}
            if outcome.arrays:
                weights, extras = parted(outcome.arrays)
                received = self._global
                if kept and received is not None:
                    received = ChainMap(dict(kept), cast(Any, received))
                weights = dict(self.exchange.to_server(weights, received, self._info))
                outcome = replace(outcome, arrays=joined(weights, extras))
            if self._part is not None and self._part.half.keeps:
                self._part.keep(self.server_round, self._store.get(KEPT).arrays)
            outcome = replace(
                outcome, metrics={**outcome.metrics, **self._metrics.told(self.personal_metrics)}
            )
            held = (s for s in STAGES if self._store.has(s))
            stages = {s: self._store.get(s).arrays[METRIC_STATES].tobytes() for s in held}
            write_held(self.round.context, kept)
            return outcome_reply(self._message, outcome, stages, self.exchange.coded)

    def _signed(self) -> AbstractContextManager[None]:
        """Have exceptions say which client they are of; those of a bridge alone stay as they are."""
        return nullcontext() if self._message is None else signed(self.client_id)

    def __getstate__(self) -> dict[str, Any]:
        # Lightning binds `log` and `log_dict` of the module to every callback; they must not travel with it.
        return {k: v for k, v in self.__dict__.items() if k not in ("log", "log_dict")}
