"""`ExactFedOpt`: a step of a server optimizer along the exact pseudo-gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from lightning_fl_ext.aggregation.rounding import rounded
from lightning_fl_ext.aggregation.structure import INTEGERS, PARTS
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.screening.norms import is_finite
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg, aggregate_summaries, gather
from lightning_fl_ext.server.strategies.values import largest_of, lead_too_far
from lightning_fl_ext.wire import to_record

Float64 = NDArray[np.float64]
State = dict[str, Float64]


class ExactFedOpt(ExactFedAvg):
    """FedOpt (Reddi et al., ICLR 2021, arXiv:2003.00295, algorithm 1): the base of the server optimizers.

    The pseudo-gradient is the exact mean of the updates minus the global weights, in float64; the step and
    its state are computed in float64 too, and the weights rounded once, to their dtypes. Buffers, integers
    and bools are averaged, as :class:`ExactFedAvg` does. A void round leaves the state as it was.

    Of a complex number both parts are optimised by themselves. Takes 8 bytes of memory for each parameter and
    moment, and as much again during a round.

    Args:
        buffers: Names of arrays to average besides integers and bools. A ``FederatedTrainer`` adds the
            model's buffers; anything else that runs this strategy needs them here: ``()`` if there are none.
        **options: Arguments of Flower's ``FedAvg``, such as ``fraction_train``.
    """

    _asked: int = 0

    def __init__(self, *, buffers: Sequence[str] | None = None, **options: Any) -> None:
        if isinstance(buffers, str):
            raise TypeError(f"`buffers` must be a list of names. Got the string {buffers!r}.")
        super().__init__(**options)
        self.buffers = None if buffers is None else list(buffers)
        self.m_t: State = {}
        self.v_t: State = {}

    @abstractmethod
    def step(
        self, delta: Float64, m: Float64 | None, v: Float64 | None
    ) -> tuple[Float64, Float64 | None, Float64]:
        """Take a step.

        Args:
            delta: The pseudo-gradient of one array: where the clients' mean lies from the global weights.
            m: First moment, None in the first round.
            v: Second moment, None in the first round.

        Returns:
            The new moments, None for one that is not kept; and what is added to the global weights.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the global weights, and configure as FedAvg does.

        Raises:
            LightningFLError: It is not known which arrays are buffers, or there is no array of that name.
        """
        if self.buffers is None:
            raise LightningFLError(
                f"{type(self).__name__} averages a model's buffers, and does not know which they are: run it"
                " in a `FederatedTrainer`, or give their names, `buffers=[...]`."
            )
        if unknown := [name for name in self.buffers if name not in arrays]:
            raise LightningFLError(
                f"{type(self).__name__}: expected `buffers` to name arrays that travel, got {unknown[:5]},"
                f" which the model's {len(arrays)} are not. Correct the names, or leave these out."
            )
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average replies as they come, letting go of each, and take a step towards the mean.

        A round is void whose weights honest clients could not answer: theirs would be left out as too large.

        Raises:
            AggregationOverflow: The updates are too large for an exact sum.
            InvalidUpdate: A reply does not fit the model; under ``FederatedTrainer`` screening comes first.
            LightningFLError: The global weights are not known.
        """
        like, self._like = self._like, None
        if like is None:
            raise LightningFLError(
                f"{type(self).__name__} needs the global weights: call `configure_train` first."
            )
        mean, summaries, largest_count = self._empty_mean(like), list[RecordDict](), 1
        for several in gather(self._updates(replies, summaries)):
            mean.add_many(several)
            largest_count = max(largest_count, *(weight for _, weight in several))
            several.clear()
        if not mean.num_updates:
            return None, None
        optimised = {name for name, old in like.items() if old.dtype not in INTEGERS} - set(
            self.buffers or ()
        )
        means, new, largest, fits = mean.wide_result(optimised), {}, 0.0, True
        self._new_mean = mean.reset
        m_before, v_before = dict(self.m_t), dict(self.v_t)

        def undo() -> None:
            self.m_t, self.v_t = m_before, v_before

        for name, old in like.items():
            if name not in optimised:
                new[name] = means[name]
                continue
            wide = _wide(old)
            delta = means.pop(name).reshape(-1).view(np.float64) - wide
            m, v, step = self.step(delta, self.m_t.get(name), self.v_t.get(name))
            self.m_t.update({name: m} if m is not None else {})
            self.v_t.update({name: v} if v is not None else {})
            part = PARTS.get(old.dtype, old.dtype)
            wide += step
            narrow = rounded(wide, part)
            largest, fits = max(largest, largest_of(wide)), fits and is_finite(narrow)
            new[name] = narrow.view(old.dtype).reshape(old.shape)
        limit = self.max_term(self._asked) / largest_count
        if lead_too_far(type(self).__name__, server_round, largest, limit, fits):
            undo()
            return None, None
        self._undo = undo
        return to_record(new), aggregate_summaries(
            summaries, self.train_metrics_aggr_fn, self.weighted_by_key
        )


def _wide(array: NDArray[Any]) -> Float64:
    flat = np.ascontiguousarray(array).reshape(-1).view(PARTS.get(array.dtype, array.dtype))
    return flat.astype(np.float64)
