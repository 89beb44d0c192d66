"""Waiting for enough clients: said while it lasts, and not for ever."""

from __future__ import annotations

import logging
import time

from flwr.serverapp.strategy import Strategy

from lightning_fl_ext.engines import NotEnoughClientsError, OrderedGrid

log = logging.getLogger(__name__)


_POLL_SECONDS = 0.2
_REMIND_SECONDS = 30.0


def innermost(strategy: Strategy) -> Strategy:
    """Give the strategy that wrappers, such as those for differential privacy, stand around."""
    while isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        strategy = inner
    return strategy


def needed_clients(strategy: Strategy) -> tuple[int, str]:
    """Tell how many clients a strategy waits for, and which of its arguments says so.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> needed_clients(FedAvg(min_available_nodes=5))
        (5, 'FedAvg(min_available_nodes=5)')
    """
    inner = innermost(strategy)
    names = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
    needs = {name: int(getattr(inner, name, 0)) for name in names}
    name = max(needs, key=lambda n: needs[n])
    return needs[name], f"{type(inner).__name__}({name}={needs[name]})"


def wait_for_clients(
    grid: OrderedGrid, strategy: Strategy, timeout: float | None, min_accepted: int = 0
) -> None:
    """Return when as many clients are connected as the strategy needs.

    Args:
        grid: The grid.
        strategy: Any Flower strategy.
        timeout: Seconds; None to wait for ever.
        min_accepted: How many updates have to count; no round is worth starting with fewer clients.

    Raises:
        NotEnoughClientsError: They are not by then; or the grid is in this process, where no more will come.
    """
    needed, says = needed_clients(strategy)
    if min_accepted > needed:
        needed, says = min_accepted, f"FederatedTrainer(min_accepted={min_accepted})"
    complaint = f"At least {needed} are needed: {says}. Connect more, or lower it."
    grid.wait_at_most(timeout, complaint)
    start, said, said_at = time.monotonic(), -1, 0.0
    while (connected := len(list(grid.get_node_ids()))) < needed:
        waited = time.monotonic() - start
        if grid.in_process or (timeout is not None and waited >= timeout):
            raise NotEnoughClientsError(
                f"{connected} client(s) are connected after {waited:.0f} s. {complaint}"
            )
        if connected != said or waited - said_at >= _REMIND_SECONDS:
            said, said_at = connected, waited
            log.warning(
                "waiting for clients: %d connected, %d needed by %s (%.0f s)", connected, needed, says, waited
            )
        time.sleep(_POLL_SECONDS if timeout is None else min(_POLL_SECONDS, timeout - waited))
