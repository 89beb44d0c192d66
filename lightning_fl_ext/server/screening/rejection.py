"""What was left out of a round, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from lightning_fl_ext.errors import LightningFLError


class Reason(StrEnum):
    """Why a reply does not count."""

    CLIENT_ERROR = "client-error"
    NO_REPLY = "no-reply"
    NOT_SAMPLED = "not-sampled"
    DUPLICATE = "duplicate-client"
    STALE = "stale-round"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too-large"
    KEYS = "keys"
    PREFIX = "prefixed-keys"
    SHAPE = "shape"
    DTYPE = "dtype"
    NOT_FINITE = "not-finite"
    NORM = "norm"
    MAGNITUDE = "magnitude"
    COUNT = "example-count"
    IDLE = "idle"
    METRIC = "odd-metric"
    SECURE = "secure-aggregation"


@dataclass(frozen=True)
class Rejection:
    """One reply, or one metric of a reply, that was left out.

    Attributes:
        client_id: Whose.
        server_round: In which round.
        reason: Why.
        key: Where in the reply; ``""`` if it is about the whole.
        expected: What would have passed.
        got: What came.
        phase: ``"evaluate"`` for a reply to an evaluation, of a client whose update may count all the same;
            ``"train"`` for all else.
    """

    client_id: str
    server_round: int
    reason: Reason
    key: str = ""
    expected: str = ""
    got: str = ""
    phase: str = "train"

    def __str__(self) -> str:
        return f"client `{self.client_id}`, {self.sentence}"

    @property
    def sentence(self) -> str:
        """When, why and where, without whose."""
        where = f", `{self.key}`" if self.key else ""
        what = f": expected {self.expected}, got {self.got}" if self.expected else f": {self.got}"
        when = f"round {self.server_round}{', evaluation' if self.phase == 'evaluate' else ''}"
        return f"{when}: {self.reason}{where}{what}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rejection:
        """Take the attributes as plain JSON data."""
        return cls(**{**data, "reason": Reason(data["reason"])})


def sort_rejections(rejections: Iterable[Rejection]) -> tuple[Rejection, ...]:
    """Sort by client and phase, each once, so that the order of arrival does not show.

    That a client is idle is told once in a round, not for its fit and its evaluation.
    """
    once = {replace(r, phase="") if r.reason is Reason.IDLE else r: r for r in rejections}
    return tuple(sorted(once.values(), key=lambda r: (r.client_id, r.phase, r.reason, r.key)))


def summary_lines(rejections: Iterable[Rejection], shown: int = 5) -> list[str]:
    """Say who was left out and why, in one line for all clients of which the same is to be said.

    Args:
        rejections: In the order to say them.
        shown: How many clients of a line to name.

    Example:
        >>> summary_lines([Rejection(client, 3, Reason.COUNT, "n", "1", "0") for client in "abc"], shown=2)
        ['left out clients `a`, `b` and 1 more, round 3: example-count, `n`: expected 1, got 0']
    """
    what_of = {Reason.METRIC: "left out a metric of ", Reason.IDLE: ""}
    clients: dict[tuple[str, str], list[str]] = {}
    for rejection in rejections:
        what = what_of.get(rejection.reason, "left out ")
        clients.setdefault((what, rejection.sentence), []).append(f"`{rejection.client_id}`")
    lines = []
    for (what, sentence), ids in clients.items():
        more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
        lines.append(f"{what}client{'s' * (len(ids) > 1)} {', '.join(ids[:shown])}{more}, {sentence}")
    return lines


class BadUpdateError(LightningFLError):
    """A bad update came, and ``on_bad_update="raise"``."""


class Rejected(Exception):
    """Raised by a check, to be turned into a `Rejection`."""

    def __init__(self, reason: Reason, key: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(reason, key, expected, got)
        self.reason = reason
        self.key, self.expected, self.got = _shortened(key), _shortened(expected), _shortened(got)


def _shortened(text: str, limit: int = 400) -> str:
    """Keep what a client sent from filling logs, or writing control characters into them."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
