"""What was left out of a round, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.text import shown


class Reason(StrEnum):
    """Why a reply does not count."""

    CLIENT_ERROR = "client-error"
    NO_REPLY = "no-reply"
    NOT_SAMPLED = "not-sampled"
    DUPLICATE = "duplicate-client"
    STALE = "stale-round"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too-large"
    OVER_LIMIT = "over-limit"
    NAME = "odd-name"
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
        return f"client `{shown(self.client_id)}`, {self.sentence}"

    @property
    def sentence(self) -> str:
        """When, why and where, without whose."""
        when = f"round {self.server_round}{', evaluation' if self.phase == 'evaluate' else ''}"
        return f"{when}: {Rejected(self.reason, self.key, self.expected, self.got)}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rejection:
        """Take the attributes as plain JSON data."""
        return cls(**{**data, "reason": Reason(data["reason"])})


def sort_rejections(rejections: Iterable[Rejection]) -> tuple[Rejection, ...]:
    """Sort by client and phase, each once, so that the order of arrival does not show.

    That a client is idle is told once in a round, not for its fit and its evaluation. What is to be said of
    several keys of a client is said once, with the first few of them; and of one reason there are never more
    than `MOST` entries of a client, so that what is kept of a round is bounded by its clients.

    Example:
        >>> odd = [Rejection("a", 3, Reason.METRIC, f"m{i}", "one of all", "its own") for i in range(9)]
        >>> for rejection in sort_rejections(odd):
        ...     print(rejection)
        client `a`, round 3: odd-metric, `m0, m1, m2 and 6 more`: expected one of all, got its own
    """
    once = {replace(r, phase="") if r.reason is Reason.IDLE else r: r for r in rejections}
    alike: dict[Rejection, list[Rejection]] = {}
    for rejection in sorted(once.values(), key=_order):
        alike.setdefault(replace(rejection, key=""), []).append(rejection)
    told: dict[tuple[str, str, Reason], list[Rejection]] = {}
    for several in alike.values():
        keys = several[0].key if len(several) == 1 else _first_few([r.key for r in several])
        one = replace(several[0], key=keys)
        told.setdefault((one.client_id, one.phase, one.reason), []).append(one)
    kept = [rejection for of_client in told.values() for rejection in _at_most(of_client)]
    return tuple(sorted(kept, key=_order))


MOST = 4
"""Entries of one client, phase and reason in a round."""


def _order(rejection: Rejection) -> tuple[str, str, Reason, str]:
    return rejection.client_id, rejection.phase, rejection.reason, rejection.key


def _at_most(rejections: list[Rejection]) -> list[Rejection]:
    if len(rejections) <= MOST:
        return rejections
    *first, last = rejections[:MOST]
    got = f"{last.got} (and {len(rejections) - MOST} more of this kind)"
    return [*first, replace(last, got=got)]


def _first_few(names: list[str], named: int = 3) -> str:
    """Name the first few, and say how many more there are."""
    more = f" and {len(names) - named} more" if len(names) > named else ""
    return ", ".join(names[:named]) + more


def summary_lines(rejections: Iterable[Rejection], named: int = 5) -> list[str]:
    """Say who was left out and why, in one line for all clients of which the same is to be said.

    Args:
        rejections: In the order to say them.
        named: How many clients of a line to name.

    Example:
        >>> summary_lines([Rejection(client, 3, Reason.COUNT, "n", "1", "0") for client in "abc"], named=2)
        ['left out clients `a`, `b` and 1 more, round 3: example-count, `n`: expected 1, got 0']
    """
    what_of = {Reason.METRIC: "left out a metric of ", Reason.IDLE: ""}
    clients: dict[tuple[str, str], list[str]] = {}
    for rejection in rejections:
        what = what_of.get(rejection.reason, "left out ")
        clients.setdefault((what, rejection.sentence), []).append(f"`{shown(rejection.client_id)}`")
    lines = []
    for (what, sentence), ids in clients.items():
        more = f" and {len(ids) - named} more" if len(ids) > named else ""
        lines.append(f"{what}client{'s' * (len(ids) > 1)} {', '.join(ids[:named])}{more}, {sentence}")
    return lines


class BadUpdateError(LightningFLError):
    """A bad update came, and ``on_bad_update="raise"``."""


class Rejected(Exception):
    """Raised by a check, to be turned into a `Rejection`.

    Args:
        reason: Why.
        key: Where in the reply.
        expected: What would have passed.
        got: What came.
        most: Characters of each that are kept.
    """

    def __init__(
        self, reason: Reason, key: str = "", expected: str = "", got: str = "", most: int = 400
    ) -> None:
        super().__init__(reason, key, expected, got)
        self.reason = reason
        self.key, self.expected, self.got = (shown(text, most) for text in (key, expected, got))

    def __str__(self) -> str:
        where = f", `{self.key}`" if self.key else ""
        what = f": expected {self.expected}, got {self.got}" if self.expected else f": {self.got}"
        return f"{self.reason}{where}{what}"
