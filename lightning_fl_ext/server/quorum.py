"""Waiting for enough clients: said while it lasts, and not for ever."""

from __future__ import annotations

import logging
import time

from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.engines import NotEnoughClientsError, OrderedGrid

log = logging.getLogger(__name__)


def needed_clients(strategy: Strategy) -> tuple[int, str]:
    """Tell how many clients a strategy waits for, and which of its arguments says so.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> needed_clients(FedAvg(min_available_nodes=5))
        (5, 'FedAvg(min_available_nodes=5)')
    """
    inner = strategy
    while hasattr(inner, "strategy"):
        inner = inner.strategy
    names = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
    needs = {name: int(getattr(inner, name, 0)) for name in names}
    name = max(needs, key=lambda n: needs[n])
    return needs[name], f"{type(inner).__name__}({name}={needs[name]})"


def wait_for_clients(grid: OrderedGrid, strategy: Strategy, timeout: float | None) -> None:
    """Return when as many clients are connected as the strategy needs.

    Args:
        grid: The grid.
        strategy: Any Flower strategy.
        timeout: Seconds; None to wait for ever.

    Raises:
        NotEnoughClientsError: They are not by then; or the grid is in this process, where no more will come.
    """
    needed, says = needed_clients(strategy)
    complaint = f"At least {needed} are needed: {says}. Connect more, or lower it."
    grid.wait_at_most(timeout, complaint)
    start, said = time.monotonic(), -1
    while (connected := len(list(grid.get_node_ids()))) < needed:
        waited = time.monotonic() - start
        if grid.in_process or (timeout is not None and waited >= timeout):
            raise NotEnoughClientsError(
                f"{connected} client(s) are connected after {waited:.0f} s. {complaint}"
            )
        if connected != said:
            said = connected
            log.warning("waiting for clients: %d connected, %d needed (%s)", connected, needed, says)
        time.sleep(0.2)
