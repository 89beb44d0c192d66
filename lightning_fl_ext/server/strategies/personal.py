"""Strategies that give each client a model of its own: Ditto and FedRep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fl_ext.arguments import whole_number
from lightning_fl_ext.server.strategies.two_halves import AlgorithmStrategy, Setting
from lightning_fl_ext.server.strategies.values import positive


class Ditto(AlgorithmStrategy):
    """Ditto (Li et al. 2021, arXiv:2012.04221, algorithm 1): a model of each client's own beside the mean.

    The global model is that of :class:`ExactFedAvg`, to the bit. In each round in which a client takes part
    it fits its own model too, with ``strength / 2 * ||v - w_global||²`` in the loss, and keeps it. Where the
    global model is evaluated or tested so is the own one: ``personal_val_...`` beside ``val_...``.

    The bytes of FedAvg; a second fit in each round, and one model on the client's disk.

    Args:
        strength: The paper's lambda: 0 leaves clients alone, more pulls their models together.
        **options: Arguments of Flower's ``FedAvg``.

    Raises:
        ValueError: ``strength`` is negative or not finite.

    Example:
        >>> Ditto(strength=0.5).strength
        0.5
    """

    algorithm = "ditto"

    def __init__(self, strength: float, **options: Any) -> None:
        super().__init__(**options)
        self.strength = positive("strength", strength, zero=True)

    def settings(self, server_round: int) -> Mapping[str, Setting]:
        """Tell clients how strongly."""
        return {"ditto-lambda": self.strength}


class FedRep(AlgorithmStrategy):
    """FedRep (Collins et al. 2021, arXiv:2102.07078, algorithm 1): a body in common, a head of each client's.

    Use it with ``exchange=WeightExchange(exclude="head.*")`` on both sides. In each fit a client trains its
    head first, then the body, which is averaged. Evaluations are of each client's own model: its head on the
    common body.

    The bytes of the body.

    Args:
        head_epochs: Epochs of a fit that are the head's; those after are the body's.
        **options: Arguments of Flower's ``FedAvg``.

    Raises:
        ValueError: ``head_epochs`` is below 1.

    Example:
        >>> FedRep(head_epochs=2).head_epochs
        2
    """

    algorithm = "fedrep"

    def __init__(self, head_epochs: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.head_epochs = whole_number("head_epochs", head_epochs, 1)

    def settings(self, server_round: int) -> Mapping[str, Setting]:
        """Tell clients how many."""
        return {"fedrep-head-epochs": self.head_epochs}
