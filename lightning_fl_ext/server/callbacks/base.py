"""`RoundCallback`: the hooks of a federated fit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.failures import described
from lightning_fl_ext.metric_names import doubt_of
from lightning_fl_ext.once import warn_once

if TYPE_CHECKING:
    from lightning_fl_ext.results import ClientUpdate
    from lightning_fl_ext.server.fit import FederatedFit
    from lightning_fl_ext.server.screening.rejection import Rejection


log = logging.getLogger(__name__)


class RoundCallback:
    """Base class of the server's callbacks; override the hooks of interest.

    The order in a fit: ``on_fit_start``; per round ``on_round_start``, ``on_configure_train``,
    ``on_messages``, ``on_reply`` for each reply, ``on_replies``, ``on_messages`` and ``on_evaluation_reply``
    for each reply if clients evaluate, ``on_round_end``; ``on_fit_end``. An error in any of them, or in the
    fit, calls ``on_exception``.

    Example:
        >>> class Greet(RoundCallback):
        ...     def on_round_end(self, trainer):
        ...         print(f"round {trainer.current_round} done")
    """

    metric_names: tuple[str, ...] = ()
    """Names of metrics that it makes: none of them can come from a client."""

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round; in a resumed run ``trainer.current_round`` rounds are done."""

    def on_round_start(self, trainer: FederatedFit) -> None:
        """Called when a round begins."""

    def on_configure_train(self, trainer: FederatedFit, config: dict[str, Any]) -> None:
        """Called before the training messages are made: add settings of the round for the clients."""

    def on_messages(self, trainer: FederatedFit, clients: list[str]) -> None:
        """Called before messages go out to clients, to train or to evaluate."""

    def on_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply to a training message, as it arrives; None where no update is seen."""

    def on_evaluation_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply to an evaluation, the site's metrics; None where they are not seen."""

    def on_replies(self, trainer: FederatedFit) -> None:
        """Called when no more replies are awaited, and the global weights are what they will be."""

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete; ``trainer.rounds[-1]`` is its record."""

    def on_exception(self, trainer: FederatedFit, exception: BaseException) -> None:
        """Called when the fit raised."""

    def on_fit_end(self, trainer: FederatedFit) -> None:
        """Called when all rounds are done."""

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs, as plain JSON data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""


def monitored(trainer: FederatedFit, monitor: str | None, mode: str | None) -> tuple[str | None, str]:
    """Give the metric a callback goes by, and its mode: its own, else the trainer's.

    Args:
        trainer: The trainer.
        monitor: The callback's own metric, if it has one.
        mode: The callback's own mode, if it has one.
    """
    own = monitor not in (None, trainer.monitor)
    monitor, mode = (monitor, mode or "min") if own else (trainer.monitor, mode or trainer.mode)
    if doubt := doubt_of(monitor, mode):
        warn_once(log, "", doubt)
    return monitor, mode


class CallbackError(LightningFLError):
    """A callback raised; the message names it, the hook and the round."""


def call_hook(trainer: FederatedFit, hook: str, *args: Any) -> None:
    """Call a hook of every callback of a trainer.

    Raises:
        CallbackError: One raised.
    """
    for callback in trainer.callbacks:
        try:
            getattr(callback, hook)(trainer, *args)
        except Exception as error:
            raise CallbackError(
                f"{type(callback).__name__}.{hook} raised in round {trainer.current_round}:"
                f" {described(error)}"
            ) from error
