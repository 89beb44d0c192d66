"""What was left out and why, each reason once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from lightning_fl_ext.server.screening.rejection import Rejection


@dataclass(frozen=True)
class ReasonGroup:
    """Everything of which the same is to be said.

    Attributes:
        rounds: In which rounds, written out.
        clients: Whose; with the number of times, if several.
        reason: Why.
        key: Where in the reply.
        expected: What would have passed.
        got: What came.
    """

    rounds: str
    clients: str
    reason: str
    key: str
    expected: str
    got: str


def group_reasons(rejections: Iterable[Rejection], named: int = 8) -> list[ReasonGroup]:
    """Say once what is to be said of several clients or rounds.

    Args:
        rejections: By round.
        named: How many clients to name.

    Example:
        >>> from lightning_fl_ext.server.screening.rejection import Reason
        >>> gone = [Rejection(client, number, Reason.NO_REPLY) for number in (4, 5, 7) for client in "ab"]
        >>> [(group.rounds, group.clients) for group in group_reasons([*gone, gone[0]][:5])]
        [('4, 5, 7', 'a (3 times), b (2 times)')]
    """
    groups: dict[tuple[str, str, str, str, str], list[Rejection]] = {}
    for r in rejections:
        groups.setdefault((r.reason, r.key, r.expected, r.got, r.phase), []).append(r)
    return [
        ReasonGroup(write_rounds({r.server_round for r in alike}), _write_clients(alike, named), *said[:4])
        for said, alike in groups.items()
    ]


def write_rounds(numbers: Iterable[int]) -> str:
    """Write numbers of rounds in little room.

    Example:
        >>> write_rounds([1, 2, 3, 5, 8, 9])
        '1–3, 5, 8, 9'
    """
    ordered = sorted(numbers)
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    ends = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    parts = [
        f"{a}–{b}" if b > a + 1 else ", ".join(map(str, sorted({a, b})))
        for a, b in zip(starts, ends, strict=True)
    ]
    return ", ".join(parts)


def _write_clients(alike: list[Rejection], named: int) -> str:
    times: dict[str, int] = {}
    for r in alike:
        times[r.client_id] = times.get(r.client_id, 0) + 1
    told = [f"{client} ({count} times)" if count > 1 else client for client, count in sorted(times.items())]
    return ", ".join(told[:named]) + (f" and {len(told) - named} more" if len(told) > named else "")
