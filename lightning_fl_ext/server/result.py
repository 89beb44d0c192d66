"""What a round and a run leave."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.rejection import Rejection, lines_of

if TYPE_CHECKING:
    from lightning_fl_ext.server.trainer import FederatedTrainer


@dataclass(frozen=True)
class RoundRecord:
    """What happened in a round.

    Attributes:
        server_round: From 1; 0 stands for the model before the first round.
        sampled: Ids of the clients asked to train, sorted.
        accepted: Ids of the clients whose update counts, sorted.
        rejected: What was left out, sorted by client.
        digest: Digest of the global weights after the round.
        metrics: Every metric of the round by name.
        void: Whether too few updates counted, so that the model stayed as it was.
    """

    server_round: int
    sampled: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    void: bool = False

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return data | {"rejected": [dict(vars(r)) for r in self.rejected], "metrics": dict(self.metrics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundRecord:
        """Take what :meth:`to_json` gave."""
        rejected = tuple(Rejection.from_json(r) for r in data["rejected"])
        names = {name: tuple(data[name]) for name in ("sampled", "accepted")}
        return cls(**{**data, **names, "rejected": rejected})


def read_metric(record: RoundRecord, name: str, known: Collection[str] = ()) -> float:
    """Read the metric that a callback monitors.

    Args:
        record: A round's.
        name: The metric's.
        known: Names of the metrics of the rounds so far.

    Returns:
        Its value; NaN if the round has none, being void, or because the replies that tell it are missing.

    Raises:
        LightningFLError: No round so far had such a metric.
    """
    if name not in record.metrics and name not in known and not record.void:
        raise LightningFLError(f"there is no metric `{name}` to monitor; there are {sorted(record.metrics)}")
    return record.metrics.get(name, math.nan)


def why_void(trainer: FederatedTrainer, record: RoundRecord) -> str:
    """Say why a round is void, in numbers."""
    count = len(record.accepted)
    counted = f"{count} of {len(record.sampled)} updates count"
    if count < trainer.min_accepted:
        return f"{counted}, `min_accepted` is {trainer.min_accepted}"
    return f"{counted}, but {type(trainer.strategy).__name__} made no model of them"


@dataclass(frozen=True)
class FederatedResult:
    """What :meth:`FederatedTrainer.fit` returns.

    Attributes:
        model: The module, holding the final global weights.
        rounds: A record of every round.
        digest: Digest of the final global weights.
    """

    model: torch.nn.Module = field(repr=False)
    rounds: tuple[RoundRecord, ...] = field(repr=False)
    digest: str

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return {name: value for record in self.rounds for name, value in record.metrics.items()}

    @property
    def rejected(self) -> list[Rejection]:
        """Everything that was left out, by round."""
        return [rejection for record in self.rounds for rejection in record.rejected]

    def __str__(self) -> str:
        """Summarise the run: rounds, who was left out and why, digest."""
        rounds = [record for record in self.rounds if record.server_round]
        void = sum(record.void for record in rounds)
        lines = [f"{len(rounds)} round(s), {void} void, {len(self.rejected)} left out"]
        return "\n".join(
            [*lines, *(f"  {line}" for line in lines_of(self.rejected)), f"digest: {self.digest}"]
        )
