"""What all rounds of a fit have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from lightning_fl_ext.server.rounds.clients import Clients
from lightning_fl_ext.server.rounds.holdings import Holdings
from lightning_fl_ext.server.rounds.strategy_calls import StrategyCalls

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit


@dataclass(frozen=True)
class FitParts:
    """What all rounds of a fit have in common.

    Attributes:
        trainer: Its strategy, seed, limits and state.
        calls: Calls the strategy.
        clients: Who is who.
        grid: Carries the messages.
        call_hook: Calls a hook of every callback.
        holdings: Which θ each client holds.
        metrics: A copy of the module's metrics, to compute pooled values with.
        owned: Tells the names of metrics that the server makes.
        earlier: Ids of messages of rounds before.
    """

    trainer: FederatedFit
    calls: StrategyCalls
    clients: Clients
    grid: Grid
    call_hook: Callable[..., None]
    holdings: Holdings
    metrics: Any
    owned: Callable[[str], bool]
    earlier: set[str] = field(default_factory=set)
