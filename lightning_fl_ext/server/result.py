"""`FederatedResult`: what a run leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_fl_ext.server.record import RoundRecord, find_best
from lightning_fl_ext.server.screening.rejection import Rejection, summary_lines

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FederatedResult:
    """What :meth:`FederatedTrainer.fit` returns.

    Attributes:
        model: The module, holding the final global weights.
        rounds: A record of every round.
        digest: Digest of the final global weights.
        monitor: The metric that the trainer went by, if any.
        mode: Whether a ``"min"`` or ``"max"`` of it is best.
        test: How the final model does on the test data, if that was asked for.
    """

    model: torch.nn.Module = field(repr=False)
    rounds: tuple[RoundRecord, ...] = field(repr=False)
    digest: str
    monitor: str | None = None
    mode: str = "min"
    test: RoundRecord | None = field(default=None, repr=False)

    @property
    def best_round(self) -> int | None:
        """The round with the best value of ``monitor``, if there is any."""
        best = find_best(self.rounds, self.monitor, self.mode) if self.monitor is not None else None
        return None if best is None else best[0]

    @property
    def best_score(self) -> float | None:
        """The best value of ``monitor``, if there is any."""
        best = find_best(self.rounds, self.monitor, self.mode) if self.monitor is not None else None
        return None if best is None else best[1]

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for record in self.rounds for name, value in record.metrics.items()}

    @property
    def rejected(self) -> list[Rejection]:
        """Everything that was left out, by round."""
        return [rejection for record in self.rounds for rejection in record.rejected]

    def __str__(self) -> str:
        """Summarise the run: rounds, who was left out and why, the best round, digest."""
        rounds = [record for record in self.rounds if record.server_round]
        void = sum(record.void for record in rounds)
        lines = [f"{len(rounds)} round(s), {void} void, {len(self.rejected)} left out"]
        lines += [f"  {line}" for line in summary_lines(self.rejected)]
        if self.best_round is not None:
            lines.append(f"best round: {self.best_round}, {self.monitor} {self.best_score:.4g}")
        return "\n".join([*lines, f"digest: {self.digest}"])
