"""Who took part in which round, as a grid of clients by rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_fl_ext.report.history import Contribution
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

MAX_CLIENTS = 60
"""Rows of the grid; of more clients, those that were left out most often are shown."""

COUNTED, PARTLY, OUT, IDLE, ABSENT = "counted", "partly", "left-out", "idle", "not-asked"


@dataclass(frozen=True)
class Cell:
    """A client in a round: how it went, and that in words."""

    status: str
    tooltip: str


@dataclass(frozen=True)
class Row:
    """A client, its rounds in the order of the grid's, and how many examples it trained on."""

    client: str
    cells: tuple[Cell, ...]
    examples: str = ""

    @property
    def counted(self) -> int:
        """Number of rounds in which its update counted."""
        return sum(cell.status in (COUNTED, PARTLY) for cell in self.cells)

    @property
    def asked(self) -> int:
        """Number of rounds in which it was asked, and had something to train on."""
        return sum(cell.status not in (ABSENT, IDLE) for cell in self.cells)

    @property
    def left_out(self) -> int:
        """Number of rounds in which it was left out."""
        return sum(cell.status == OUT for cell in self.cells)


@dataclass(frozen=True)
class Participation:
    """The grid.

    Attributes:
        numbers: The rounds, ascending.
        void: Those of them that are void.
        rows: The clients, by id.
        hidden: Number of clients for which there is no room.
    """

    numbers: tuple[int, ...]
    void: frozenset[int]
    rows: tuple[Row, ...]
    hidden: int = 0


def lay_out(
    rounds: Sequence[RoundRecord],
    clients: Sequence[str],
    contributions: Mapping[int, Mapping[str, Contribution]] | None = None,
) -> Participation:
    """Make the grid.

    Args:
        rounds: Records of the rounds, ascending.
        clients: Ids of all clients, sorted.
        contributions: By round and client, what counted; of these come the counts of examples.

    Example:
        >>> grid = lay_out([RoundRecord(1, sampled=("a", "b"), accepted=("a",))], ["a", "b", "c"])
        >>> [(row.client, row.cells[0].status) for row in grid.rows]
        [('a', 'counted'), ('b', 'left-out'), ('c', 'not-asked')]
    """
    of_client: list[dict[str, list[Rejection]]] = []
    for record in rounds:
        reasons: dict[str, list[Rejection]] = {}
        for rejection in record.rejected:
            reasons.setdefault(rejection.client_id, []).append(rejection)
        of_client.append(reasons)
    accepted = [frozenset(record.accepted) for record in rounds]
    sampled = [frozenset(record.sampled) for record in rounds]
    counts = _examples(contributions or {})
    rows = [
        Row(
            client,
            tuple(
                _cell(client, record.server_round, client in a, client in s, r.get(client, []))
                for record, a, s, r in zip(rounds, accepted, sampled, of_client, strict=True)
            ),
            counts.get(client, ""),
        )
        for client in clients
    ]
    shown = sorted(rows, key=lambda row: (-row.left_out, row.client))[:MAX_CLIENTS]
    return Participation(
        numbers=tuple(record.server_round for record in rounds),
        void=frozenset(record.server_round for record in rounds if record.void),
        rows=tuple(sorted(shown, key=lambda row: row.client)),
        hidden=len(rows) - len(shown),
    )


def _examples(contributions: Mapping[int, Mapping[str, Contribution]]) -> dict[str, str]:
    """Write for each client how many examples it trained on; from least to most, if that changes."""
    seen: dict[str, set[int]] = {}
    for of_round in contributions.values():
        for client, entry in of_round.items():
            seen.setdefault(client, set()).add(entry.num_examples)
    return {
        client: f"{min(counts)}–{max(counts)}" if len(counts) > 1 else f"{min(counts)}"
        for client, counts in seen.items()
    }


def _cell(client: str, number: int, accepted: bool, sampled: bool, rejections: list[Rejection]) -> Cell:
    where = f"client {client}, round {number}"
    idle = [r for r in rejections if r.reason is Reason.IDLE]
    others = [r for r in rejections if r.reason is not Reason.IDLE]
    if accepted:
        parts = "; ".join(f"{_part(r)} was left out: {_why(r)}" for r in others)
        return Cell(PARTLY, f"{where}: counted; {parts}") if parts else Cell(COUNTED, f"{where}: counted")
    if idle and not others:
        return Cell(IDLE, f"{where}: {idle[0].got or 'no examples'}")
    if sampled or others:
        return Cell(OUT, f"{where}: left out{': ' if others else ''}{'; '.join(map(_why, others))}")
    return Cell(ABSENT, f"{where}: not asked")


def _part(rejection: Rejection) -> str:
    return "a metric" if rejection.reason is Reason.METRIC else "its evaluation"


def _why(rejection: Rejection) -> str:
    return f"{rejection.reason} at {rejection.key}" if rejection.key else str(rejection.reason)
