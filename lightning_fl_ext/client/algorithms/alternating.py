"""FedRep on the client: first the head, which stays at home, then the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit, Parameters
from lightning_fl_ext.client.instruction_limits import MOST_ROUND, bounded_integer
from lightning_fl_ext.errors import LightningFLError

HEAD_EPOCHS = "fedrep-head-epochs"
"""Key of the server's config."""


class AlternatingParts(ClientAlgorithm):
    """FedRep (Collins et al. 2021, arXiv:2102.07078, algorithm 1): trains head and body in turns.

    In the first epochs of a fit optimizers step the parameters that stay at home, in the others those that
    travel. The ones whose turn it is not have no gradient in the step: optimizers pass them over.

    Args:
        settings: The server's config; ``fedrep-head-epochs`` says how many epochs are the head's.

    Raises:
        InstructionError: It is missing, or no such number.
    """

    name = "fedrep"

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self.head_epochs = bounded_integer(HEAD_EPOCHS, settings.get(HEAD_EPOCHS), MOST_ROUND)
        self._first: int | None = None
        self._body_stepped = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(head_epochs={self.head_epochs})"

    def on_fit_start(self, fit: LocalFit) -> None:
        """See that both parts have their turn.

        Raises:
            LightningFLError: Nothing stays at home or nothing travels, what stays is not kept, the fit has
                too few epochs, or the optimizer is LBFGS.
        """
        self._first, self._body_stepped = None, False
        if not fit.local or not fit.parameters:
            raise LightningFLError(
                "FedRep, which the server asks for, trains a head that stays at home and a body that travels."
                f" Got {len(fit.local)} parameters that stay and {len(fit.parameters)} that travel. Name the"
                " head on both sides: `exchange=WeightExchange(exclude='head.*')`, on the command line"
                " `--exclude 'head.*'`."
            )
        if not fit.keeps_local:
            raise LightningFLError(
                "FedRep, which the server asks for, has a client's head go on from round to round, and"
                f" nothing keeps it here ({', '.join(list(fit.local)[:3])}). Leave out"
                " `client_app(keep_local=False)`, or give it a folder; a `ClientApp` by hand keeps what"
                " `bridge.local_entries` names, and sets `bridge.keeps_local = True`."
            )
        epochs = fit.trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.head_epochs:
            raise LightningFLError(
                f"FedRep, which the server asks for, gives the first {self.head_epochs} epochs to the head."
                f" Got {epochs}, so that none is left for the body: `trainer={{'max_epochs': ...}}`."
            )
        optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in fit.trainer.optimizers]
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
            raise LightningFLError(
                "FedRep, which the server asks for, has optimizers pass over the part whose turn it is not."
                " Got LBFGS, which steps along directions of earlier turns, and would move it all the same."
                " Use another optimizer."
            )

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Take the gradients from the part whose turn it is not."""
        epoch = fit.trainer.current_epoch
        self._first = epoch if self._first is None else self._first
        heads_turn = epoch - self._first < self.head_epochs
        self._body_stepped |= not heads_turn
        for parameter in (fit.parameters if heads_turn else fit.local).values():
            parameter.grad = None

    def on_fit_end(self, fit: LocalFit) -> Mapping[str, torch.Tensor]:
        """See that the body had its turn.

        Raises:
            LightningFLError: The fit ended before, so that what travels would be the weights that came.
        """
        if self._first is not None and not self._body_stepped:
            raise LightningFLError(
                f"FedRep, which the server asks for, gives the first {self.head_epochs} epochs to the head,"
                " and the fit ended before the body took a step. Let it go on for longer: look at"
                " `max_steps`, `max_time`, and callbacks that stop early."
            )
        return {}
