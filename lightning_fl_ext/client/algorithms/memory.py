"""What an algorithm keeps on its client from round to round, in Flower's Context."""

from __future__ import annotations

from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import from_record, to_record


class AlgorithmMemory(Protocol):
    """Holds an algorithm's states by round, of one client in one run.

    Two are held: the newest, and the one that it was made from. A round whose update did not count, or that
    the server asks for again, starts from the latter.
    """

    def rounds(self) -> list[int]:
        """Give the rounds of the states it has, in order."""

    def read(self, server_round: int) -> Arrays | None:
        """Give the state after a round; None if there is none, or it is damaged."""

    def made_from(self, server_round: int) -> int:
        """Give the round whose state the one after a round was made from; 0 for none, or if it is damaged."""

    def write(self, server_round: int, previous: int, state: Arrays) -> None:
        """Hold the state after a round, and let go of all but that and the one it was made from."""


def require_round(algorithm: str, server_round: int) -> None:
    """Refuse a fit whose round is not told: the next one would not find what this one keeps.

    Raises:
        LightningFLError: It is so.
    """
    if server_round < 1:
        raise LightningFLError(
            f"`{algorithm}`, which the server asks for, keeps something from round to round, and needs to"
            " know the round: the server's config must hold `server-round`, as that of `FederatedTrainer` and"
            " of Flower's strategies does."
        )


def find_state(
    memory: AlgorithmMemory, algorithm: str, client: str, server_round: int, counted: int | None
) -> tuple[int, Arrays]:
    """Give the state that a fit goes on from, and the round that it is of.

    Args:
        memory: Where it lies.
        algorithm: Whose state.
        client: The client's id.
        server_round: The round that is about to start.
        counted: The last round in which the client's update counted, 0 for none; None if the server does not
            tell, for the newest state of an earlier round.

    Returns:
        ``(0, {})`` if the client has not taken part before.

    Raises:
        LightningFLError: The server counts on a state that is gone.
    """
    rounds = memory.rounds()
    earlier = [number for number in rounds if number < server_round or not server_round]
    wanted = (max(earlier, default=0)) if counted is None else counted
    state = memory.read(wanted) if wanted else {}
    if counted is None and rounds and not earlier and (lost := memory.made_from(rounds[0])):
        raise LightningFLError(
            f"client `{client}`, round {server_round}: its state of `{algorithm}` from before is gone. It has"
            f" those of rounds {rounds}, which go back to one of round {lost}: the server has gone back"
            " further than a client keeps states. Put it back, or start a new run."
        )
    if state is None:
        raise LightningFLError(
            f"client `{client}`: its state of `{algorithm}` after round {wanted}, in which its update counted"
            f" last, is gone or damaged (it has those of rounds {rounds}). What the server keeps counts on"
            " it, so that to begin afresh would bend the result. Put it back, or start a new run."
        )
    return wanted, state


class ContextMemory:
    """Holds states in Flower's Context, which lives as long as the SuperNode or the simulation does.

    Args:
        context: The client's.
        run_id: The run.
        algorithm: Whose states.
    """

    def __init__(self, context: Context, run_id: str, algorithm: str) -> None:
        self._context = context
        self._run_id = run_id
        self._name = f"algorithm-{algorithm}"

    def rounds(self) -> list[int]:
        """Give the rounds of the states it has, in order."""
        return sorted(self._index())

    def read(self, server_round: int) -> Arrays | None:
        """Give the state after a round; None if there is none."""
        record = self._context.state.get(f"{self._name}-{server_round}")
        held = server_round in self.rounds() and isinstance(record, ArrayRecord)
        return from_record(record) if held else None  # type: ignore[arg-type]

    def made_from(self, server_round: int) -> int:
        """Give the round whose state the one after a round was made from; 0 for none."""
        return self._index().get(server_round, 0)

    def write(self, server_round: int, previous: int, state: Arrays) -> None:
        """Hold the state after a round, and let go of all but that and the one it was made from."""
        made_from = {**self._index(), server_round: previous}
        keep = [number for number in self.rounds() if number == previous and number < server_round]
        kept = {number: self._context.state[f"{self._name}-{number}"] for number in keep}
        for name in [name for name in self._context.state if name.startswith(f"{self._name}-")]:
            del self._context.state[name]
        for number, record in kept.items():
            self._context.state[f"{self._name}-{number}"] = record
        self._context.state[f"{self._name}-{server_round}"] = to_record(state)
        rounds = [*keep, server_round]
        self._context.state[self._name] = ConfigRecord(
            {"run-id": self._run_id, "rounds": rounds, "made-from": [made_from[number] for number in rounds]}
        )

    def _index(self) -> dict[int, int]:
        """Give the round that each state it has was made from."""
        index = self._context.state.get(self._name)
        if not isinstance(index, ConfigRecord) or index["run-id"] != self._run_id:
            return {}
        rounds: Any = index["rounds"]
        made_from: Any = index["made-from"]
        return dict(zip(rounds, made_from, strict=True))
