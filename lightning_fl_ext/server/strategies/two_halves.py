"""`AlgorithmStrategy`: the server's half of an algorithm that clients have a part in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.screening.norms import is_finite
from lightning_fl_ext.server.strategies.combined import weights_and_kept
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.values import is_float, largest_of, lead_too_far, narrowed, positive
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.algorithm_names import ALGORITHM, EXTRA, joined, parted

Setting = bool | int | float | str


class AlgorithmStrategy(ExactFedAvg):
    """Base of strategies whose clients do more than train: FedProx, SCAFFOLD, FedNova, FedDyn and your own.

    A subclass names the client's half, a :class:`~lightning_fl_ext.ClientAlgorithm`, and overrides what it
    needs of the methods below. All of them are functions of arrays by name; messages, screening, the exact
    sum, void rounds and checkpoints are seen to. In a round they are called in this order::

        settings ─┐                        ┌─> contribution, for each update ─> exact means ─> combine
        extras  ──┴─> clients ─> updates ──┘

    Plain numbers and strings among a subclass's attributes make a run the run it is: a checkpoint is refused
    where they differ.

    Args:
        max_extra_norm: Largest L2 norm, over floating arrays, of what a client sends beside its weights: of
            the change of its control variate (:class:`Scaffold`), or the normalizer itself
            (:class:`FedNova`). An update beyond it is left out. None: only magnitudes are bounded.
        **options: Arguments of Flower's ``FedAvg``.

    Raises:
        TypeError: ``max_extra_norm`` is given where clients send nothing beside their weights.
        ValueError: It is no positive number.

    Attributes:
        algorithm: Name of the client's half. A client that does not know it says so and is left out.
        clients_keep: Whether that keeps a state from round to round. Each client is then told in which round
            its update counted last, and goes on from its state of that round.
        parameters: Names of the trained entries among the arrays, as ``FederatedTrainer`` tells them; None in
            Flower's own ``start``, where all floating arrays are taken for such.
        kept: What the server keeps from round to round: a tree of numbers and arrays, part of checkpoints.
            What :meth:`combine` makes of it is taken back if the round does not count.

    Example:
        >>> class Halved(AlgorithmStrategy):
        ...     algorithm = "fedavg"
        ...     def combine(self, before, mean, extras, share):
        ...         return {name: (before[name] + mean[name]) / 2 for name in mean}, {}
        >>> Halved(fraction_train=0.5).algorithm
        'fedavg'
    """

    algorithm: ClassVar[str] = "fedavg"
    clients_keep: ClassVar[bool] = False
    parameters: list[str] | None = None

    _before: Arrays | None = None
    _connected: int = 0
    _asked: int = 0
    _folded: int = 0
    _largest_count: int = 0

    def __init__(self, *, max_extra_norm: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if max_extra_norm is not None and not self.clients_send_more:
            raise TypeError(
                f"`max_extra_norm` bounds what clients send beside their weights, and those of"
                f" {type(self).__name__} send nothing: `FederatedTrainer(max_update_norm=...)` bounds all."
            )
        self.max_extra_norm = None if max_extra_norm is None else positive("max_extra_norm", max_extra_norm)
        self.kept: dict[str, Any] = {}

    # What a subclass says

    def settings(self, server_round: int) -> Mapping[str, Setting]:
        """Give what the config tells the client's half."""
        return {}

    def extras(self, arrays: Arrays) -> Arrays:
        """Give what is sent beside the global weights, by name."""
        return {}

    def expected(self, arrays: Arrays) -> Arrays:
        """Give arrays of the names, shapes and dtypes that clients send beside their weights.

        They are screened as weights are: names, shapes, dtypes, finite values, magnitudes.
        """
        return {}

    def check(self, extras: Arrays) -> None:
        """Refuse values that no client of this algorithm sends, beyond what screening sees to.

        Raises:
            ValueError: Says what was expected, and what came; the update is left out by name.
        """

    def contribution(self, before: Arrays, weights: Arrays, extras: Arrays) -> Arrays:
        """Give what of one update goes into the mean in place of its weights.

        Args:
            before: The global weights that the client was sent.
            weights: Its own.
            extras: What it sent beside them.

        Returns:
            Arrays with the names and shapes of the weights, in dtypes that depend on those alone.
        """
        return weights

    def combine(
        self, before: Arrays, mean: Arrays, extras: Arrays, share: float
    ) -> tuple[Arrays, dict[str, Any]]:
        """Make the new global weights.

        Args:
            before: The global weights before the round.
            mean: The exact mean of the contributions, weighted by examples.
            extras: That of what clients sent beside them.
            share: Clients whose update is in the means, out of those connected.

        Returns:
            The weights, in whatever floating dtypes; and what is kept, in a dict and arrays of its own:
            ``self.kept`` is what a void round goes back to.
        """
        return mean, self.kept

    @property
    def clients_send_more(self) -> bool:
        """Whether clients send something beside their weights."""
        return type(self).expected is not AlgorithmStrategy.expected

    @property
    def sends_or_keeps(self) -> bool:
        """Whether the server does more than to average and to name the client's half."""
        own, base, names = type(self), AlgorithmStrategy, ("combine", "contribution", "extras", "expected")
        return any(getattr(own, name) is not getattr(base, name) for name in names)

    def trained(self, arrays: Arrays) -> list[str]:
        """Give the names of the floating arrays that are trained, as opposed to buffers."""
        names = arrays if self.parameters is None else self.parameters
        return [name for name in names if name in arrays and is_float(arrays[name])]

    # Flower's interface

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask clients for their half, and send what it needs.

        Raises:
            LightningFLError: An array of the model has a name that is kept for algorithms.
        """
        before = from_record(arrays)
        if taken := [name for name in before if name.startswith(EXTRA)]:
            raise LightningFLError(
                f"the model's `{taken[0]}`: names that begin with `{EXTRA}` are those of what"
                f" {type(self).__name__} sends beside the weights. Give the entry another name."
            )
        self._write_config(config, self.settings(server_round))
        self._connected = len(list(grid.get_node_ids()))
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        self._before, self._like = before, self._sums(before)
        if extras := self.extras(before):
            record = ArrayRecord(joined(arrays, to_record(extras)))
            for message in messages:
                content = {k: record if v is arrays else v for k, v in message.content.items()}
                message.content = RecordDict(content)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Tell clients which half is at work, and configure as FedAvg does."""
        self._write_config(config, {})
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the contributions exactly, and combine the means.

        A round is void whose weights honest clients could not answer: theirs would be left out as too large.
        """
        before, self._folded, self._largest_count = self._before, 0, 0
        record, metrics = super().aggregate_train(server_round, replies)
        self._before = None
        if record is None or before is None or not self.sends_or_keeps:
            return record, metrics
        mean, extras = parted(from_record(record))
        given = self.combine(before, mean, extras, self._folded / max(self._connected, 1))
        new, kept = weights_and_kept(given, before, f"{type(self).__name__}.combine")
        made, trained = {name: np.asarray(new[name]) for name in before}, self.trained(before)
        new = {name: narrowed(made[name], array.dtype) for name, array in before.items()}
        largest = max((largest_of(made[name]) for name in trained), default=0.0)
        fits = all(is_finite(new[name]) for name in trained)
        limit = self.max_term(self._asked) / max(self._largest_count, 1)
        if lead_too_far(type(self).__name__, server_round, largest, limit, fits):
            return None, None
        self._undo, self.kept = partial(setattr, self, "kept", self.kept), kept
        return to_record(new), metrics

    def _updates(
        self, replies: Iterable[Message], summaries: list[RecordDict]
    ) -> Iterator[tuple[Arrays, int]]:
        for arrays, weight in super()._updates(replies, summaries):
            self._folded += 1
            self._largest_count = max(self._largest_count, weight)
            weights, extras = parted(arrays)
            before = weights if self._before is None else self._before
            yield joined(self.contribution(before, weights, extras), extras), weight

    def _sums(self, before: Arrays) -> Arrays:
        """Give what the means are like."""
        expected = self.expected(before)
        blank = {name: np.broadcast_to(array.dtype.type(1), array.shape) for name, array in expected.items()}
        return joined(self.contribution(before, before, blank), expected)

    def _write_config(self, config: ConfigRecord, settings: Mapping[str, Setting]) -> None:
        for name, value in {ALGORITHM: self.algorithm, **settings}.items():
            if name in config and config[name] != value:
                raise LightningFLError(
                    f"{type(self).__name__} sets the config's `{name}` to {value!r}, and it is there already"
                    f" as {config[name]!r}. Take it out of `train_config`: two algorithms do not add up to"
                    " one, unless a strategy says how."
                )
            try:
                config[name] = value.item() if isinstance(value, np.generic) else value
            except TypeError:
                raise LightningFLError(
                    f"{type(self).__name__}.settings: {name!r} is {value!r}; expected a name, and a number or"
                    " a text: only they travel."
                ) from None
