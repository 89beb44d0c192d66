"""Rounds that end a run: nobody's code works, no round could count, or a strategy makes what is no model."""

from __future__ import annotations

import logging
from collections.abc import Collection

from lightning_fl_ext.aggregation.conform import conform
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.rounds.messages import RoundMessages
from lightning_fl_ext.server.rounds.strategy_calls import read_from
from lightning_fl_ext.server.screening.norms import is_finite
from lightning_fl_ext.server.screening.rejection import Reason
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy

log = logging.getLogger(__name__)


def refuse_if_too_few_are_asked(strategy: str, messages: RoundMessages, least: int) -> None:
    """Refuse a round in which fewer clients are asked to train than must be accepted.

    Raises:
        LightningFLError: It is so.
    """
    asked = len(messages.outgoing)
    if 0 < asked < least:
        raise LightningFLError(
            f"{strategy} asks {asked} client(s) to train in round {messages.server_round}, but"
            f" `min_accepted` is {least}: no round could count. Have it ask more (`fraction_train`,"
            " `min_train_nodes`), or lower `min_accepted`."
        )


def refuse_if_all_failed(messages: RoundMessages, worked: bool = False) -> None:
    """Refuse a round of which nothing was accepted because the clients' own code fails on all of them.

    Args:
        messages: The round's.
        worked: Whether a round before has worked, which the error then does not deny.

    Raises:
        LightningFLError: It is so.
    """
    failed = [r for r in messages.rejected if r.reason is Reason.CLIENT_ERROR]
    others = [r for r in messages.rejected if r.reason not in (Reason.CLIENT_ERROR, Reason.IDLE)]
    if failed and not others:
        asked = "asked" if len(failed) == len(messages.outgoing) else "with examples"
        when = "" if worked else ", before any round has worked"
        raise LightningFLError(
            f"all {len(failed)} clients {asked} failed{when}. One of them:"
            f" {min(failed, key=lambda r: r.client_id)}"
        )


def warn_of_unbounded_extras(strategy: AlgorithmStrategy, max_update_norm: float | None) -> None:
    """Say so where a limit on updates does not reach all that clients send."""
    if max_update_norm is not None and strategy.clients_send_more and strategy.max_extra_norm is None:
        log.warning(
            "`max_update_norm` bounds clients' weights, and %s has them send more beside these, which moves"
            " the model as well. Bound that too: `%s(max_extra_norm=...)`",
            *[type(strategy).__name__] * 2,
        )


def checked_weights(
    strategy: str, server_round: int, new: Arrays, old: Arrays, clients: Collection[str]
) -> Arrays:
    """Bring what a strategy made back to the model's dtypes.

    Args:
        strategy: Its name.
        server_round: The current round.
        new: What it made.
        old: The global weights before, in state-dict order.
        clients: Whose updates it was made of.

    Raises:
        LightningFLError: It does not fit the model, or is not finite.
    """
    wrong = sorted(k for k in {*old, *new} if k not in new or k not in old or new[k].shape != old[k].shape)
    if wrong:
        raise LightningFLError(
            f"{strategy} gave weights that do not fit the model in round {server_round}, at"
            f" {wrong[:5]}.{read_from(clients)}"
        )
    conformed = conform(new, old)
    if broken := [key for key in old if not (is_finite(new[key]) and is_finite(conformed[key]))]:
        raise LightningFLError(
            f"{strategy} made weights that are not finite in round {server_round}, at"
            f" {broken[:3]}, from updates that were. The round before is the last good one."
            f" `max_update_norm` leaves out updates that are too large.{read_from(clients)}"
        )
    return conformed
