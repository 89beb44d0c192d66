"""`ExactFedAvg`: federated averaging whose result depends on the updates and on nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.clients import declared_id
from lightning_fl_ext.wire import from_record, to_record


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

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the global model's structure, and configure as FedAvg does."""
        self._like = from_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold replies one at a time, letting go of each.

        Raises:
            AggregationOverflow: The updates are too large for an exact sum.
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
        """
        mean: ExactMean | None = None
        heads: list[RecordDict] = []
        for reply in replies:
            if reply.has_error():
                continue
            arrays = from_record(next(iter(reply.content.array_records.values())))
            metrics = next(iter(reply.content.metric_records.values()))
            if mean is None:
                mean = ExactMean(self._like or arrays)
            weight = metrics[self.weighted_by_key]
            mean.add(arrays, int(weight) if isinstance(weight, float) and weight.is_integer() else weight)  # type: ignore[arg-type]
            heads.append(RecordDict({"metrics": metrics, **reply.content.config_records}))
            del reply, arrays
        self._like = None
        if mean is None:
            return None, None
        heads.sort(key=declared_id)
        shared = set.intersection(*(set(head.metric_records["metrics"]) for head in heads))
        for head in heads:
            record = head.metric_records["metrics"]
            head["metrics"] = MetricRecord({key: record[key] for key in record if key in shared})
        return to_record(mean.result()), self.train_metrics_aggr_fn(heads, self.weighted_by_key)
