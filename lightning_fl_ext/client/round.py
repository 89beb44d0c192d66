"""`ClientRound`: what a client knows of the round that it is asked to take part in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Context

from lightning_fl_ext.results import Arrays


@dataclass(frozen=True)
class ClientRound:
    """One client's part of one round, for the functions that make its model, data and Trainer.

    Attributes:
        client_id: The client's id; ``""`` if it declares none.
        server_round: The round, from 1; 0 outside a fit, or if the server does not tell.
        max_rounds: Rounds of the whole run; 0 if the server does not tell.
        config: What the server's configuration holds, such as ``"run-seed"``.
        context: What Flower hands to a ``ClientApp``; a client keeps its ``state`` from round to round.
        weights: The received arrays by name, read-only.

    Example:
        >>> def data(round):
        ...     return load_site(round.client_id, augment=round.server_round > 3)
        >>> def trainer(round):
        ...     return {"max_epochs": 1 if round.server_round < round.max_rounds else 5}
        >>> app = client_app(LitDigits, data, trainer)  # doctest: +SKIP
    """

    client_id: str
    server_round: int
    max_rounds: int
    config: Mapping[str, object] = field(repr=False)
    context: Context = field(repr=False)
    weights: Arrays = field(repr=False)
