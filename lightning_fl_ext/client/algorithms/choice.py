"""Which algorithm a message asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fl_ext.client.algorithms.proximal import ProximalTerm
from lightning_fl_ext.client.instruction_limits import InstructionError
from lightning_fl_ext.client.messages import read_algorithm, read_proximal_mu
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from flwr.app import Message

KNOWN = ("fedavg", "fedprox")
"""Values of the configuration's `algorithm` that have a client's half here; ``fedavg`` is plain training."""


def algorithm_of(message: Message) -> ProximalTerm | None:
    """Give what a message's configuration asks local training to do besides; None if it asks for nothing.

    ``proximal-mu`` alone, as Flower's ``FedProx`` sends it, is enough. A strategy whose clients must know
    their half says so under ``algorithm``, and clients that do not know it refuse.

    Raises:
        InstructionError: ``algorithm`` names none that is known here, or ``proximal-mu`` is missing, is no
            such number or contradicts it.
    """
    algorithm, mu = read_algorithm(message), read_proximal_mu(message)
    if algorithm not in (None, *KNOWN):
        raise InstructionError(
            f"the server's config `algorithm`: this client knows {', '.join(KNOWN)}, got"
            f" `{shown(algorithm)}`. Nothing was trained: plain training would be another algorithm. Use a"
            " strategy that this client knows, or install a version of lightning-fl-ext that knows this one."
        )
    if algorithm == "fedprox" and mu is None:
        raise InstructionError("the server's config `algorithm` is `fedprox`, and `proximal-mu` is missing")
    if algorithm == "fedavg" and mu:
        raise InstructionError(
            f"the server's config `algorithm` is `fedavg`, and `proximal-mu` is {mu:g}: expected 0 or none"
        )
    return ProximalTerm(mu) if mu else None
