"""Waiting for enough clients: said while it lasts, and not for ever."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

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


class Need(NamedTuple):
    """How many clients have to be connected, and who says so.

    Attributes:
        clients: How many.
        says: The argument that asks for so many.
        remedy: What else can be done than connecting more.
    """

    clients: int
    says: str
    remedy: str = "or lower it"


def needed_clients(strategy: Strategy, connected: int = 0, min_accepted: int = 0) -> Need:
    """Tell how many clients a round waits for.

    A strategy may say so itself, by ``least_connected(connected)``, which gives what :class:`Need` is of.

    Args:
        strategy: Any Flower strategy.
        connected: How many there are.
        min_accepted: How many updates have to count; 0 if none are asked for.

    Example:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> needed_clients(FedAvg(min_available_nodes=5))[:2]
        (5, 'FedAvg(min_available_nodes=5)')
    """
    inner = innermost(strategy)
    names = ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
    counts = {name: int(getattr(inner, name, 0)) for name in names}
    needs = [Need(count, f"{type(inner).__name__}({name}={count})") for name, count in counts.items()]
    if min_accepted:
        needs.append(Need(min_accepted, f"FederatedTrainer(min_accepted={min_accepted})"))
        if (least_connected := getattr(inner, "least_connected", None)) is not None:
            needs.append(Need(*least_connected(connected)))
    return max(needs, key=lambda need: need.clients)


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

    def complaint(need: Need) -> str:
        return f"At least {need.clients} are needed: {need.says}. Connect more, {need.remedy}."

    grid.wait_at_most(timeout, complaint(needed_clients(strategy, 0, min_accepted)))
    start, said, said_at = time.monotonic(), -1, 0.0
    while True:
        connected = len(list(grid.get_node_ids()))
        need = needed_clients(strategy, connected, min_accepted)
        if connected >= need.clients:
            return
        waited = time.monotonic() - start
        if grid.in_process or (timeout is not None and waited >= timeout):
            raise NotEnoughClientsError(
                f"{connected} client(s) are connected after {waited:.0f} s. {complaint(need)}"
            )
        if connected != said or waited - said_at >= _REMIND_SECONDS:
            said, said_at = connected, waited
            told = (connected, need.clients, need.says, waited)
            log.warning("waiting for clients: %d connected, %d needed by %s (%.0f s)", *told)
        time.sleep(_POLL_SECONDS if timeout is None else min(_POLL_SECONDS, timeout - waited))
