"""What an algorithm keeps on its client from round to round, on disk."""

from __future__ import annotations

from pathlib import Path

from lightning_fl_ext.client.persistence.local_entries import describe
from lightning_fl_ext.client.persistence.saved_state import SavedState
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import to_numpy, to_torch


class FolderMemory:
    """Holds an algorithm's states in a folder of the client, run and algorithm.

    Args:
        root: Where states of all clients lie.
        client: The client.
        run_id: The run.
        algorithm: Whose states.

    Example:
        >>> FolderMemory(Path("states"), "site-a", "7", "scaffold").rounds()
        []
    """

    def __init__(self, root: Path, client: str, run_id: str, algorithm: str) -> None:
        self._folder = StateFolder(root, client, f"{run_id} {algorithm}")

    def rounds(self) -> list[int]:
        """Give the rounds of the states it has, in order."""
        return self._folder.rounds()

    def read(self, server_round: int) -> Arrays | None:
        """Give the state after a round; None if there is none, or it is damaged."""
        kept = self._folder.read(server_round)
        return None if kept is None else {name: to_numpy(tensor) for name, tensor in kept.state.items()}

    def made_from(self, server_round: int) -> int:
        """Give the round whose state the one after a round was made from; 0 for none, or if it is damaged."""
        kept = self._folder.read(server_round)
        return 0 if kept is None else kept.previous

    def write(self, server_round: int, previous: int, state: Arrays) -> None:
        """Hold the state after a round, and let go of all but that and the one it was made from."""
        tensors = {name: to_torch(array) for name, array in state.items()}
        model = {name: describe(tensor) for name, tensor in tensors.items()}
        self._folder.write(SavedState(server_round, previous, model, tensors))
