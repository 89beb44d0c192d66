"""The learning rate of a round, as the server says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fl_ext.client.instruction_limits import InstructionError, number
from lightning_fl_ext.errors import LightningFLError

KEY = "learning-rate"
"""Key of the server's config."""


def learning_rate_of(settings: Mapping[str, object]) -> float | None:
    """Give the learning rate that the server asks for; None if it asks for none.

    Raises:
        InstructionError: It is no positive number.
    """
    if KEY not in settings:
        return None
    if not (rate := number(KEY, settings[KEY])):
        raise InstructionError(f"the server's config `{KEY}`: expected a number above 0, got 0")
    return rate


def set_learning_rate(trainer: Any, rate: float) -> None:
    """Give every optimizer of a fit this rate, in all of its groups.

    Raises:
        LightningFLError: A schedule or the groups have rates of their own, or an optimizer has none.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    reason = None
    if trainer.lr_scheduler_configs:
        kinds = sorted({type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs})
        reason = f"a schedule ({', '.join(kinds)}) sets its own"
    elif not groups or any("lr" not in group for group in groups):
        reason = "an optimizer has none"
    elif len({float(group["lr"]) for group in groups}) > 1:
        reason = "the groups of parameters have different ones"
    if reason:
        raise LightningFLError(
            f"the server asks for a learning rate of {rate:g} (config `{KEY}`), and {reason}. Have"
            " `client_app(model=lambda round: ...)` make what it should be from `round.config`, under another"
            " name."
        )
    for group in groups:
        group["lr"] = rate
