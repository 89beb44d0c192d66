"""`ExactFedAvg`: federated averaging whose result depends on the updates and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext.aggregation import ExactMean, exact_mean
from lightning_fl_ext.aggregation.kernels import UPDATES_PER_PASS
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.metrics.aggregation import WEIGHTED_MEAN, common_metrics, of_most
from lightning_fl_ext.wire import from_record
from lightning_fl_ext.wire.client_record import declared_id
from lightning_fl_ext.wire.records import written_record
from lightning_fl_ext.wire.typed_records import records_of


class ExactFedAvg(FedAvg):
    """FedAvg (McMahan et al. 2017, arXiv:1602.05629) with the exact weighted mean.

    Takes the arguments of Flower's ``FedAvg``, and works wherever that does. The mean is the same to the bit
    for every arrival order and grouping (:class:`~lightning_fl_ext.ExactMean`), keeps the global model's
    dtypes, and is made as replies come in: the memory it takes does not grow with the number of clients.

    Example:
        >>> ExactFedAvg(fraction_train=0.5).order_free
        True
    """

    order_free = True
    """Replies may be handed over one by one in any order."""

    reads_every_dtype = True
    """bfloat16 and float8 arrays need no translation."""

    _like: Arrays | None = None
    # Functions are no state: they are in no checkpoint.
    _undo: Callable[[], None] | None = None
    _new_mean: Callable[[Arrays], ExactMean]  # there while memory is kept

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the global model's structure, and configure as FedAvg does."""
        self._like = from_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average a list of replies at once; fold those of an iterator as they come, letting go of each.

        Raises:
            AggregationOverflow: The updates are too large for an exact sum.
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
        """
        summaries: list[RecordDict] = []
        updates = self._updates(replies, summaries)
        like, self._like = self._like, None
        record: ArrayRecord | None = None
        if isinstance(replies, Sequence):
            if at_hand := list(updates):
                model = like or at_hand[0][0]
                record = written_record(model, lambda out: exact_mean(model, at_hand, out=out))
        else:
            mean: ExactMean | None = None
            for several in gather(updates):
                like = like or several[0][0]
                mean = mean or self._empty_mean(like)
                mean.add_many(several)
                several.clear()
            if mean is not None and like is not None:
                record = written_record(like, mean.result)
                self._new_mean = mean.reset
        if record is None:
            return None, None
        return record, aggregate_summaries(summaries, self.train_metrics_aggr_fn, self.weighted_by_key)

    def _updates(
        self, replies: Iterable[Message], summaries: list[RecordDict]
    ) -> Iterator[tuple[Arrays, int]]:
        """Read replies one by one, keeping of each its metrics and configs."""
        for reply in replies:
            if reply.has_error():
                continue
            metrics = next(iter(records_of(reply.content, MetricRecord).values()))
            summaries.append(RecordDict({**records_of(reply.content, ConfigRecord), "metrics": metrics}))
            weight = metrics[self.weighted_by_key]
            whole = int(weight) if isinstance(weight, float) and weight.is_integer() else weight
            yield from_record(next(iter(records_of(reply.content, ArrayRecord).values()))), whole  # type: ignore[misc]
            del reply

    def _empty_mean(self, like: Arrays) -> ExactMean:
        """Begin a mean, in the memory of the last round's, which is taken so that no two rounds share it."""
        begin: Callable[[Arrays], ExactMean] = vars(self).pop("_new_mean", ExactMean)
        return begin(like)

    def end_round(self, void: bool) -> None:
        """Keep what a subclass made of its state in a round, or take it back if the round does not count."""
        undo, self._undo = self._undo, None
        if void and undo is not None:
            undo()

    def end_fit(self) -> None:
        """Let go of the sums' memory, which each round takes over from the one before."""
        vars(self).pop("_new_mean", None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies the sums' memory, and the way back from this one's last round."""
        return {name: value for name, value in vars(self).items() if name not in ("_new_mean", "_undo")}

    @staticmethod
    def max_term(num_clients: int) -> float:
        """Largest magnitude of a weight times its count, at which no number of such clients can overflow."""
        return 2.0**42 / num_clients if num_clients else math.inf


def gather(updates: Iterable[tuple[Arrays, int]]) -> Iterator[list[tuple[Arrays, int]]]:
    """Gather updates for one pass over the sums, which costs a large model more than reading the updates.

    What a list gave is not held on to once it has been cleared.

    Example:
        >>> import numpy as np
        >>> [len(several) for several in gather(({"w": np.zeros(9)}, 1) for _ in range(6))]
        [4, 2]
    """
    several: list[tuple[Arrays, int]] = []
    for update in updates:
        several.append(update)
        del update
        if len(several) == UPDATES_PER_PASS:
            yield several
            several = []
    if several:
        yield several


def aggregate_summaries(
    summaries: list[RecordDict], aggregate: Callable[[list[RecordDict], str], MetricRecord], key: str
) -> MetricRecord:
    """Aggregate the metrics of replies that came in any order.

    Args:
        summaries: Of each reply the metrics, named ``"metrics"``, and the config records.
        aggregate: A strategy's ``train_metrics_aggr_fn``; called in an order that does not depend on that of
            ``summaries``: Flower's mean with the metrics that all share, another function with those that
            most clients report, of the clients that report all of these.
        key: A strategy's ``weighted_by_key``.
    """
    metrics = {str(i): dict(_metrics(summary)) for i, summary in enumerate(summaries)}
    shared, _ = common_metrics(metrics, 0)
    most, whole = of_most(metrics)
    if aggregate is not WEIGHTED_MEAN and whole:
        shared, summaries = most, [summaries[int(i)] for i in whole]
    for summary in summaries:
        record = _metrics(summary)
        summary["metrics"] = MetricRecord({name: record[name] for name in sorted(shared)})
    summaries.sort(key=lambda summary: (declared_id(summary), repr(_metrics(summary))))
    return aggregate(summaries, key)


def _metrics(summary: RecordDict) -> MetricRecord:
    return records_of(summary, MetricRecord)["metrics"]
