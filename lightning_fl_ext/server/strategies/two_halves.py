"""`AlgorithmStrategy`: the server's half of an algorithm that clients have a part in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
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

    Takes the arguments of Flower's ``FedAvg``. Plain numbers and strings among a subclass's attributes make a
    run the run it is: a checkpoint is refused where they differ.

    Attributes:
        algorithm: Name of the client's half. A client that does not know it says so and is left out.
        clients_keep: Whether that keeps a state from round to round. Each client is then told in which round
            its update counted last, and goes on from its state of that round.
        parameters: Names of the trained entries among the arrays, as ``FederatedTrainer`` tells them; None in
            Flower's own ``start``, where all floating arrays are taken for such.
        kept: What the server keeps from round to round: a tree of numbers and arrays, part of checkpoints.
            What :meth:`combine` makes of it counts once the round does.

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
    _folded: int = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: dict[str, Any] = {}
        # What the last round made of it, and the weights which tell that the round has counted.
        self._next: dict[str, Any] = {}
        self._next_digest = ""

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
            The weights, in whatever floating dtypes; and what is kept.
        """
        return mean, self.kept

    @property
    def sends_or_keeps(self) -> bool:
        """Whether the server does more than to average and to name the client's half."""
        own, base, names = type(self), AlgorithmStrategy, ("combine", "contribution", "extras", "expected")
        return any(getattr(own, name) is not getattr(base, name) for name in names)

    def trained(self, arrays: Arrays) -> list[str]:
        """Give the names of the floating arrays that are trained, as opposed to buffers."""
        names = arrays if self.parameters is None else self.parameters
        return [name for name in names if name in arrays and _is_float(arrays[name])]

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
        self._settle(before)
        self._write_config(config, self.settings(server_round))
        self._connected = len(list(grid.get_node_ids()))
        messages = list(super().configure_train(server_round, arrays, config, grid))
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
        """Average the contributions exactly, and combine the means."""
        before, self._folded = self._before, 0
        record, metrics = super().aggregate_train(server_round, replies)
        self._before = None
        if record is None or before is None or not self.sends_or_keeps:
            return record, metrics
        mean, extras = parted(from_record(record))
        new, self._next = self.combine(before, mean, extras, self._folded / max(self._connected, 1))
        new = {name: np.asarray(new[name]).astype(array.dtype, copy=False) for name, array in before.items()}
        self._next_digest = digest(new) if self._next or self.kept else ""
        return to_record(new), metrics

    def _updates(
        self, replies: Iterable[Message], summaries: list[RecordDict]
    ) -> Iterator[tuple[Arrays, int]]:
        for arrays, weight in super()._updates(replies, summaries):
            self._folded += 1
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
            config[name] = value

    def _settle(self, before: Arrays) -> None:
        """Take over what the last round made, if these are its weights; a void round leaves no trace."""
        if self._next_digest and self._next_digest == digest(before):
            self.kept = self._next
        self._next, self._next_digest = {}, ""


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "biuc"


def wide(array: NDArray[Any]) -> NDArray[np.float64]:
    """Give an array as float64, which holds every narrower float exactly."""
    return array.astype(np.float64)


def at_least_single(array: NDArray[Any]) -> np.dtype[Any]:
    """Give the dtype in which to hold sums for an array: its own, or float32 if that is narrower."""
    return np.dtype(np.float64 if array.dtype == np.float64 else np.float32)


def positive(name: str, value: float, zero: bool = False) -> float:
    """Take a positive number.

    Raises:
        ValueError: It is none.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value >= 0 if zero else value > 0) or not value < math.inf:
        raise ValueError(
            f"`{name}` must be a finite number {'of at least' if zero else 'above'} 0. Got {value!r}."
        )
    return float(value)
