"""FedProx on the client: a pull towards the global weights, added to gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit, Parameters
from lightning_fl_ext.client.instruction_limits import InstructionError, number


class Scratch:
    """Room for one tensor of a step, taken once: a large one for every step costs more than the sum.

    Example:
        >>> Scratch().difference(torch.ones(2, 2), torch.zeros(2, 2)).sum()
        tensor(4.)
    """

    def __init__(self) -> None:
        self._room: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def difference(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Give ``one - other``, which holds until the next call."""
        dtype, size = torch.promote_types(one.dtype, other.dtype), one.numel()
        room = self._room.get(key := (dtype, one.device))
        if room is None or room.numel() < size:
            room = self._room[key] = torch.empty(size, dtype=dtype, device=one.device)
        return torch.sub(one, other, out=room[:size].view(one.shape))


class ProximalTerm(ClientAlgorithm):
    """Adds ``mu * (w - w_global)`` to gradients: FedProx (Li et al. 2020, arXiv:1812.06127, section 3.2).

    That is the gradient of ``mu / 2 * ||w - w_global||²`` in the loss. It is added once for every step of an
    optimizer, to that optimizer's own parameters that travel. A parameter that the loss did not reach in this
    step is pulled all the same; a step in which none of the optimizer's parameters has a gradient is left
    alone. In memory are the global weights, and room for the largest tensor.

    Args:
        settings: The server's config; ``proximal-mu`` says how strongly.

    Raises:
        InstructionError: ``proximal-mu`` is missing, negative or not finite.

    Example:
        >>> ProximalTerm({"proximal-mu": 0.1})
        ProximalTerm(mu=0.1)
    """

    name = "fedprox"

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        if "proximal-mu" not in settings:
            raise InstructionError(
                "the server's config `algorithm` is `fedprox`, and `proximal-mu` is missing"
            )
        self.mu = number("proximal-mu", settings["proximal-mu"])
        self._near: dict[str, torch.Tensor] = {}
        self._scratch = Scratch()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mu={self.mu:g})"

    def on_fit_start(self, fit: LocalFit) -> None:
        """Note the weights to pull towards."""
        self._near = {name: parameter.detach().clone() for name, parameter in fit.parameters.items()}

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Add the term."""
        if self.mu:
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                moved = self._scratch.difference(parameter, self._near[name])
                parameter.grad.add_(moved, alpha=self.mu)
