"""`FederatedFit`: what the parts of the server see of a fit that is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy
    from torch import nn

    from lightning_fl_ext.results import Arrays
    from lightning_fl_ext.server.record import RoundRecord
    from lightning_fl_ext.server.result import FederatedResult
    from lightning_fl_ext.server.screening.limits import Limits
    from lightning_fl_ext.wire import Exchange


class FederatedFit(Protocol):
    """A federated fit, as callbacks, checkpoints, rounds and reports see it.

    :class:`~lightning_fl_ext.FederatedTrainer` is one. The parts that it imports name this protocol instead
    of the trainer, so that they can be read, typed and tested without it. Its attributes are described there.
    """

    # Settings
    max_rounds: int
    seed: int
    min_accepted: int
    on_bad_update: str
    max_update_norm: float | None
    limits: Limits
    site_metrics: dict[str, str]
    average_metrics: tuple[str, ...]
    train_config: Mapping[str, Any] | Callable[[int], Mapping[str, Any]]
    round_timeout: float | None
    exchange: Exchange
    monitor: str | None
    mode: str
    default_root_dir: Path
    ckpt_path: str | Path | None
    loggers: list[Any]

    # State
    strategy: Strategy
    model: nn.Module
    arrays: Arrays
    current_round: int
    run_id: str
    fingerprint: dict[str, Any]
    rounds: list[RoundRecord]
    callback_metrics: dict[str, float]
    should_stop: bool
    result: FederatedResult | None

    @property
    def callbacks(self) -> Sequence[Any]:
        """The callbacks, in the order in which their hooks are called."""

    def add_record(self, record: RoundRecord) -> None:
        """Add a round's record, and hand its metrics to the loggers."""
