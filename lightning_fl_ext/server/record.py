"""`RoundRecord`: what a round leaves, and what can be asked of several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.screening.rejection import Rejection
from lightning_fl_ext.text import shown


@dataclass(frozen=True)
class SiteEvaluation:
    """How a model does at one site.

    Attributes:
        num_examples: Examples that the site evaluated it on.
        metrics: The site's own values by name; empty if it keeps them to itself.
    """

    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


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
        sum_digest: Under secure aggregation, the digest of the unmasked sum.
        sites: How the weights after the round do at each site that evaluated them, by client id.
    """

    server_round: int
    sampled: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    digest: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    void: bool = False
    sum_digest: str = ""
    sites: Mapping[str, SiteEvaluation] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON data, with ``"nan"`` and ``"inf"`` as strings, since JSON has no such numbers."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if not self.sum_digest:
            del data["sum_digest"]
        del data["sites"]
        if self.sites:  # a ledger without evaluations is written as it always was
            data["sites"] = {
                client: {"num_examples": site.num_examples, "metrics": _plain(site.metrics)}
                for client, site in sorted(self.sites.items())
            }
        rejected = [dict(vars(r)) for r in self.rejected]
        return data | {"rejected": rejected, "metrics": _plain(self.metrics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RoundRecord:
        """Take what :meth:`to_json` gave."""
        rejected = tuple(Rejection.from_json(r) for r in data["rejected"])
        names = {name: tuple(data[name]) for name in ("sampled", "accepted")}
        metrics = {str(name): float(value) for name, value in data["metrics"].items()}
        sites = {str(client): _site(told) for client, told in data.get("sites", {}).items()}
        return cls(**{**data, **names, "rejected": rejected, "metrics": metrics, "sites": sites})


def _plain(metrics: Mapping[str, float]) -> dict[str, float | str]:
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def _site(told: Mapping[str, Any]) -> SiteEvaluation:
    metrics = {str(name): float(value) for name, value in told["metrics"].items()}
    if type(told["num_examples"]) is not int:
        raise ValueError("a count of examples that is none")
    return SiteEvaluation(told["num_examples"], metrics)


def require_metric(rounds: Sequence[RoundRecord], name: str) -> None:
    """Refuse to monitor a metric that no round so far has, though the last one is not void.

    Raises:
        LightningFLError: Says which metrics there are.
    """
    last = rounds[-1]
    if not last.void and not any(name in record.metrics for record in rounds):
        there = shown(sorted(last.metrics), 2000)
        raise LightningFLError(f"there is no metric `{name}` to monitor; there are {there}")


def find_best(rounds: Sequence[RoundRecord], name: str, mode: str) -> tuple[int, float] | None:
    """Find the round with the best value of a metric; the first one, if several have it.

    Args:
        rounds: Records; that of the model before the first round does not take part.
        name: The metric. Rounds without it, or where it is NaN, do not take part.
        mode: Whether a ``"min"`` or ``"max"`` is best.

    Returns:
        The round and the value; None if no round has any.

    Example:
        >>> rounds = [RoundRecord(i, metrics={"f1": value}) for i, value in enumerate([0.9, 0.5, 0.7, 0.7])]
        >>> find_best(rounds, "f1", "max")
        (2, 0.7)
    """
    values = [(r.server_round, r.metrics.get(name, math.nan)) for r in rounds if r.server_round]
    sign = 1 if mode == "min" else -1
    return min(
        (found for found in values if not math.isnan(found[1])), key=lambda f: sign * f[1], default=None
    )


def why_void(record: RoundRecord, min_accepted: int, strategy: object) -> str:
    """Say why a round is void, in numbers.

    Args:
        record: Of a void round.
        min_accepted: Least number of updates of the run.
        strategy: What aggregates them. It, or the strategy it is a wrapper of, may tell the reason itself, by
            ``why_no_model(asked, counted)``.

    Example:
        >>> why_void(RoundRecord(1, sampled=("a", "b"), accepted=("a",), void=True), 2, strategy=None)
        '1 of 2 updates count, `min_accepted` is 2'
    """
    count = len(record.accepted)
    counted = f"{count} of {len(record.sampled)} updates count"
    if count < min_accepted:
        return f"{counted}, `min_accepted` is {min_accepted}"
    inner = strategy
    while not hasattr(inner, "why_no_model") and hasattr(inner, "strategy"):
        inner = inner.strategy
    told = inner.why_no_model(len(record.sampled), count) if hasattr(inner, "why_no_model") else ""
    return f"{counted}, but {told or f'{type(strategy).__name__} made no model of them'}"
