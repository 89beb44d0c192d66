"""`SecureFedAvg`: the exact mean of updates of which the server sees none."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from lightning_fl_ext.aggregation import ExactMean
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.secure import Terms
from lightning_fl_ext.server.strategies.exact_fedavg import ExactFedAvg
from lightning_fl_ext.server.strategies.secure_round import SecureOutcome, SecureRound
from lightning_fl_ext.wire.records import written_record
from lightning_fl_ext.wire.secure_record import ACTION, ANNOUNCE, SECURE, STEP


class SecureFedAvg(ExactFedAvg):
    """FedAvg whose server sees the sum of a round, and nothing of one client.

    The protocol is that of Bonawitz et al. (CCS 2017) with the neighbours of Bell et al. (CCS 2020): clients
    mask what :class:`ExactFedAvg` would sum, as whole numbers modulo 2^64, so the masks cancel to the bit
    and the result is that of :class:`ExactFedAvg` over those who did not drop out. Keys and masks are new in
    every round, from the operating system's generator, whatever the run's seed.

    Clients need their half: :func:`~lightning_fl_ext.client_app` has it.

    Args:
        threshold: Fraction of the clients asked whose masked update must arrive, more than half; with fewer
            the round is void, and nothing is revealed.
        step_timeout: Seconds to wait for each step after training; None for ever.
        **options: Arguments of Flower's ``FedAvg``. ``fraction_evaluate`` is 0 unless given, since an
            evaluation takes four exchanges as well; what a fit logs is inside its sum already.

    Raises:
        ValueError: An argument is not one of the above, or ``train_metrics_aggr_fn`` or
            ``evaluate_metrics_aggr_fn`` is given: there are no single clients' metrics to call it with.

    Example:
        >>> SecureFedAvg(threshold=0.8).needed(10)
        8
    """

    secure = True
    """It asks clients in several steps, and gets no update of any."""

    # Functions are no state: nothing of a round can come into a checkpoint.
    _round: Callable[[], SecureRound] | None = None
    _outcome: Callable[[], SecureOutcome] | None = None

    def __init__(self, threshold: float = 2 / 3, step_timeout: float | None = 600.0, **options: Any) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.5 < threshold <= 1:
            raise ValueError(
                "`threshold` must be a fraction above one half, up to 1: with fewer a server could unmask"
                f" single updates. Got {threshold!r}."
            )
        if step_timeout is not None and not step_timeout > 0:
            raise ValueError(f"`step_timeout` must be a positive number of seconds. Got {step_timeout!r}.")
        for name in ("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"):
            if options.get(name) is not None:
                raise ValueError(
                    f"`{name}` needs each client's metrics, which `SecureFedAvg` does not see: it sums them"
                    " under the masks. Leave it out."
                )
        super().__init__(**{"fraction_evaluate": 0.0, **options})
        self.threshold = float(threshold)
        self.step_timeout = step_timeout

    def needed(self, asked: int) -> int:
        """Give how many of the clients asked must survive."""
        return max(math.ceil(self.threshold * asked - 1e-9), asked // 2 + 1)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure as FedAvg does, and ask for keys.

        Raises:
            SecureAggregationError: Fewer than three clients would be asked.
        """
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return self._ask(grid, "train", messages, self._like or {}, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the keys, have them shared, and sum what comes masked.

        Args:
            server_round: The current round.
            replies: Of the clients that announced their keys; others are passed over.
        """
        like, self._like = self._like or {}, None
        found = self._sum(replies)
        if found is None:
            return None, None
        mean, metrics = found
        return written_record(like, mean.result), MetricRecord(dict(metrics))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure as FedAvg does, and ask for keys: metrics are summed like updates.

        Raises:
            SecureAggregationError: Fewer than three clients would be asked.
        """
        messages = list(super().configure_evaluate(server_round, arrays, config, grid))
        return self._ask(grid, "evaluate", messages, {}, config)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Take the keys, have them shared, and sum the metrics that come masked."""
        found = self._sum(replies)
        return None if found is None else MetricRecord(dict(found[1]))

    def take_outcome(self) -> SecureOutcome:
        """Give what the last round has come to, once."""
        outcome, self._outcome = self._outcome, None
        return outcome() if outcome is not None else SecureOutcome()

    def _ask(
        self, grid: Grid, phase: str, messages: list[Message], like: Arrays, config: ConfigRecord
    ) -> list[Message]:
        """Have messages ask for keys of a new round."""
        if not messages:
            return messages
        terms = Terms(secrets.token_bytes(16), len(messages), self.needed(len(messages)))
        terms.check()
        step: dict[str, Any] = {
            STEP: ANNOUNCE,
            "session": terms.session,
            "asked": terms.asked,
            "threshold": terms.threshold,
            "count-key": self.weighted_by_key,
        }
        if "max-update-norm" in config:
            step["max-update-norm"] = config["max-update-norm"]
        for message in messages:
            message.metadata.message_type = f"{phase}.{ACTION}"
            message.content = RecordDict({**message.content, SECURE: ConfigRecord(step)})
        round_ = SecureRound(grid, phase, terms, like, self.step_timeout)
        self._round = lambda: round_
        return messages

    def _sum(self, replies: Iterable[Message]) -> tuple[ExactMean, dict[str, float]] | None:
        """Take the round that was asked for, if there is one, through its steps."""
        if self._round is None:
            return None
        round_, self._round = self._round(), None
        outcome = SecureOutcome()
        self._outcome = lambda: outcome
        return round_.run(replies, outcome)
