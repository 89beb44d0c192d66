"""A client's part in one round of an algorithm: its half, what came for it, and where it keeps its state."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks
from lightning_fl_ext.client.algorithms.memory import AlgorithmMemory, find_state, require_round
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.wire import to_numpy, to_torch

KEPT = "kept"
"""The outcome of a fit that holds an algorithm's new state."""


class AlgorithmPart:
    """Everything of one client's part in one round.

    Args:
        half: The client's half.
        received: What came beside the weights.
        memory: Where its state lies.
        counted: The last round in which the client's update counted; None if the server does not tell.

    Attributes:
        hooks: The half in a Trainer's hooks.
    """

    def __init__(
        self, half: ClientAlgorithm, received: Arrays, memory: AlgorithmMemory, counted: int | None
    ) -> None:
        self.half = half
        self.hooks = AlgorithmHooks(half)
        self.memory = memory
        self._received = received
        self._counted = counted

    def start(
        self,
        trainer: Any,
        module: torch.nn.Module,
        local_entries: Collection[str],
        travelled: Collection[str],
        client: str,
        server_round: int,
        keeps_local: bool,
    ) -> None:
        """Begin the fit, from the state after the last round that counted.

        Raises:
            LightningFLError: That state is gone, the round is not told, or the fit is one in which the half
                cannot work.
        """
        state: Arrays = {}
        if self.half.keeps:
            require_round(self.half.name, server_round)
            _, state = find_state(self.memory, self.half.name, client, server_round, self._counted)
        received, kept = ({n: to_torch(a) for n, a in s.items()} for s in (self._received, state))
        self.hooks.start(trainer, module, local_entries, travelled, received, kept, keeps_local)

    @property
    def sent(self) -> Arrays:
        """What goes to the server beside the weights."""
        return {name: to_numpy(tensor) for name, tensor in self.hooks.sent.items()}

    @property
    def kept(self) -> Arrays:
        """The new state."""
        fit = self.hooks.fit
        return {} if fit is None else {name: to_numpy(tensor) for name, tensor in fit.kept.items()}

    def keep(self, server_round: int, state: Arrays) -> None:
        """Hold the new state.

        Raises:
            LightningFLError: It cannot be written.
        """
        earlier = [number for number in self.memory.rounds() if number < server_round]
        previous = max(earlier, default=0) if self._counted is None else self._counted
        self.memory.write(server_round, previous, state)
