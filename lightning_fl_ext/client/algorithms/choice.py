"""Which algorithm a message asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lightning_fl_ext.client.algorithms.alternating import AlternatingParts
from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.drift import ControlVariates, DynamicRegularizer, NormalizedSteps
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm
from lightning_fl_ext.client.instruction_limits import InstructionError, name, number
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.algorithm_names import ALGORITHM, EXTRA

PLAIN = "fedavg"
"""Value of the configuration's `algorithm` that asks for plain training."""

KNOWN: tuple[type[ClientAlgorithm], ...] = (
    ProximalTerm,
    ControlVariates,
    NormalizedSteps,
    DynamicRegularizer,
    AlternatingParts,
)
"""The client halves that every client knows; `client_app` knows Ditto besides."""


def algorithm_of(
    settings: Mapping[str, object], own: Sequence[type[ClientAlgorithm]] = ()
) -> ClientAlgorithm | None:
    """Give what a message's configuration asks local training to do besides; None if it asks for nothing.

    ``proximal-mu`` alone, as Flower's ``FedProx`` sends it, is enough. A strategy whose clients must know
    their half says so under ``algorithm``, and clients that do not know it refuse.

    Args:
        settings: The configuration.
        own: Halves that this client knows besides; they go before those of the same name.

    Raises:
        InstructionError: ``algorithm`` names none that is known here, or ``proximal-mu`` is missing, is no
            such number or contradicts it.
    """
    asked = settings.get(ALGORITHM)
    asked = None if asked is None else name(ALGORITHM, asked)
    mu = settings.get("proximal-mu")
    mu = None if mu is None else number("proximal-mu", mu)
    halves: dict[str, type[ClientAlgorithm]] = {half.name: half for half in (*KNOWN, *own)}
    if asked is not None and asked not in (PLAIN, *halves):
        raise InstructionError(
            f"the server's config `algorithm`: this client knows {', '.join((PLAIN, *halves))}, got"
            f" `{shown(asked)}`. Nothing was trained: plain training would be another algorithm. Use a"
            " strategy that this client knows, give the half of one of your own as `algorithms=`, or install"
            " a version of lightning-fl-ext that knows this one."
        )
    if mu and asked not in (None, ProximalTerm.name):
        raise InstructionError(
            f"the server's config `algorithm` is `{shown(asked)}`, and `proximal-mu` is {mu:g}: expected 0 or"
            " none. One half is at work at a time: the pull would become part of what the other one measures."
        )
    if asked is None:
        return ProximalTerm(settings) if mu else None
    return None if asked == PLAIN else halves[asked](settings)


def check_received(half: ClientAlgorithm | None, received: Arrays) -> None:
    """Refuse what a server sends beside the weights that no fit should begin with.

    Args:
        half: At work; None for plain training, which takes nothing.
        received: What came, by name.

    Raises:
        InstructionError: Nobody takes it, or a value is not finite.
    """
    for entry, array in received.items():
        key = shown(f"{EXTRA}{entry}")
        if half is None:
            raise InstructionError(
                f"the server sends `{key}` beside the weights, and its config's `{ALGORITHM}` names no half"
                " that takes it. Nothing was trained: plain training would be another algorithm."
            )
        if array.dtype.kind not in "biu" and not np.isfinite(array).all():
            raise InstructionError(
                f"the server's `{key}`, for `{half.name}`: expected finite values, got others. Nothing was"
                " trained."
            )


def check_halves(halves: object) -> tuple[type[ClientAlgorithm], ...]:
    """Take halves of a user's own.

    Raises:
        TypeError: They are something else, or one of them has no name.
    """
    listed = tuple(halves) if isinstance(halves, list | tuple) else (halves,)
    for half in listed:
        if not (isinstance(half, type) and issubclass(half, ClientAlgorithm) and half.name):
            raise TypeError(
                "`algorithms` must be classes derived from `ClientAlgorithm`, each with a `name`, such as"
                f" `algorithms=(Mine,)`. Got {shown(half)}."
            )
    return listed
