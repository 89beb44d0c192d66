"""`FedPM`: federated probabilistic mask training, the server's part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.aggregation.mask_posterior import MaskPosterior
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, digest
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg, aggregate_summaries
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, TRIALS
from lightning_fl_ext.wire.typed_records import records_of


class FedPM(FedAvg):
    """Bayesian aggregation of masks (Isik et al., ICLR 2023, arXiv:2209.15328, section 3.2).

    Every parameter has a Beta posterior over being open: each client's mask counts once, whatever its number
    of examples; the masks of a void round do not. θ is its mode, a ratio of integers, so the result does not
    depend on the order of arrival. Whatever travels besides the masks is averaged exactly, weighted by
    examples.

    Use it in a ``FederatedTrainer`` with ``exchange=MaskExchange(...)``, the same as on the clients.

    Args:
        prior: α and β before any mask. 1 is flat; more pulls θ towards 1/2.
        reset_every: Rounds after which counting starts again from the prior. The paper resets every
            1 / participation rounds. It also starts again before it would exceed 65535 masks.
        **options: Arguments of Flower's ``FedAvg``, such as ``fraction_train``.

    Raises:
        ValueError: ``prior`` is not an integer from 1 to 32767, or ``reset_every`` not one of at least 1.

    Example:
        >>> FedPM(reset_every=2, fraction_train=0.5).reset_every
        2
    """

    order_free = True
    reads_every_dtype = True
    reads_coded = True
    """Its arrays are what a mask exchange has decoded."""

    max_term = staticmethod(ExactFedAvg.max_term)
    """Counts of masks cannot overflow; the exact mean of what travels beside them can."""

    def __init__(self, prior: int = 1, reset_every: int = 1, **options: Any) -> None:
        for name, value in (("prior", prior), ("reset_every", reset_every)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"`{name}` must be an integer. Got {value!r}.")
        super().__init__(**options)
        MaskPosterior.start(0, prior=prior, reset_every=reset_every)  # complains about its arguments
        self.prior = prior
        self.reset_every = reset_every
        # θ is the posterior but for the number of rounds in it. SavedState for the last θ and the one it came
        # from: a round that the trainer declares void starts from that one again.
        self._rounds: dict[str, int] = {}
        self._given: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the θ that the masks are drawn from, and configure as FedAvg does.

        Raises:
            LightningFLError: The arrays are not masks.
        """
        if MODEL not in arrays:
            raise LightningFLError(
                "`FedPM` aggregates masks, and there are none: pass `exchange=MaskExchange(...)` to"
                " `FederatedTrainer` and to `client_app`."
            )
        self._given = ArrayRecord({name: arrays[name] for name in (COUNTS, TRIALS, MODEL)})
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count masks one at a time, and average the rest."""
        summaries: list[RecordDict] = []
        rest: list[ExactMean] = []
        masks = self._masks_of(replies, summaries, rest)
        first = next(masks, None)
        if first is None:
            return None, None
        given = from_record(self._given or ArrayRecord())
        before = self._posterior(given)
        posterior = before.update(chain([first], masks))
        theta = posterior.theta()
        new = {COUNTS: theta.counts, TRIALS: np.array(theta.trials), MODEL: given[MODEL]}
        self._rounds = {digest(given): before.rounds, digest(new): posterior.rounds}
        self._given = None
        for mean in rest:
            new |= mean.result()
        return to_record(new), aggregate_summaries(
            summaries, self.train_metrics_aggr_fn, self.weighted_by_key
        )

    def _masks_of(
        self, replies: Iterable[Message], summaries: list[RecordDict], rest: list[ExactMean]
    ) -> Iterator[NDArray[np.bool_]]:
        for reply in replies:
            arrays = from_record(next(iter(records_of(reply.content, ArrayRecord).values())))
            metrics = next(iter(records_of(reply.content, MetricRecord).values()))
            summaries.append(RecordDict({**records_of(reply.content, ConfigRecord), "metrics": metrics}))
            mask = arrays.pop(MASKS)
            if arrays:
                if not rest:
                    rest.append(ExactMean(arrays))
                rest[0].add(arrays, int(metrics[self.weighted_by_key]))  # type: ignore[arg-type]
            del reply, arrays
            yield mask

    def _posterior(self, given: Arrays) -> MaskPosterior:
        """The posterior whose mode is `given`; one that has counted nothing if that is a run's first θ."""
        counts, half = given[COUNTS].astype(np.int64), self.prior - 1
        rounds = self._rounds.get(digest(given), 0)
        if not rounds:
            return MaskPosterior.start(counts.size, prior=self.prior, reset_every=self.reset_every)
        masks = int(given[TRIALS]) - 2 * half
        return MaskPosterior(counts - half, masks, rounds, self.prior, self.reset_every)
