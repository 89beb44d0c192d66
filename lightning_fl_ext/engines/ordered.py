"""A grid whose nodes stand in the order of their clients' ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from lightning_fl_ext.engines.private import Run
from lightning_fl_ext.errors import LightningFLError

_LATE_ASKS = 5
"""A strategy that has enough nodes asks once or twice; one that waits asks again and again."""


class NotEnoughClientsError(LightningFLError):
    """Too few clients were connected for too long."""


class OrderedGrid(Grid):
    """Wraps a grid so that ``get_node_ids`` does not depend on the nodes' random ids.

    Flower's strategies sample with ``random.sample(list(grid.get_node_ids()), k)``. With this order and a
    seeded ``random`` the same clients are sampled in every run. A strategy that keeps asking for nodes,
    because too few are connected, is stopped at a deadline.

    Args:
        grid: Any Flower ``Grid``.
        order: Puts node ids into the order of their clients' ids.
    """

    def __init__(self, grid: Grid, order: Callable[[Iterable[int]], list[int]]) -> None:
        self.grid = grid
        self._order = order
        self._deadline: float | None = None
        self._complaint = ""
        self._last: list[int] | None = None
        self._late_asks = 0

    def wait_at_most(self, seconds: float | None, complaint: str) -> None:
        """Start a deadline for finding enough nodes.

        Args:
            seconds: From now; None for no deadline.
            complaint: What the error says besides how many are connected.
        """
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._complaint = complaint
        self._last, self._late_asks = None, 0

    def get_node_ids(self) -> Iterable[int]:
        """List node ids in the order of their clients' ids.

        Raises:
            NotEnoughClientsError: The deadline has passed, and the caller keeps asking although the nodes
                stay the same.
        """
        ids = self._order(self.grid.get_node_ids())
        late = self._deadline is not None and time.monotonic() > self._deadline
        self._late_asks = self._late_asks + 1 if late and self._last == ids else 0
        self._last = ids
        if self._late_asks >= _LATE_ASKS:
            raise NotEnoughClientsError(f"{len(ids)} client(s) are connected. {self._complaint}")
        return ids

    @property
    def in_process(self) -> bool:
        """Whether the grid runs the clients itself, so that waiting for them is in vain."""
        return bool(getattr(self.grid, "in_process", False))

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Pass on."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Pass on."""
        return self.grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pass on."""
        return self.grid.send_and_receive(messages, timeout=timeout)
