"""`ClientAlgorithm`: what a client does around its fit, besides training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

Parameters = dict[str, torch.nn.Parameter]


@dataclass
class LocalFit:
    """One fit of one client, as an algorithm sees it.

    Attributes:
        trainer: The Lightning Trainer at work.
        module: Its LightningModule.
        parameters: The parameters that travel, by name.
        local: Those that stay at home.
        received: What the server sent beside the weights, by name, on the CPU.
        kept: What :meth:`ClientAlgorithm.on_fit_end` left here in the last round that counted for this
            client; empty before. Tensors on the CPU.
        keeps_local: Whether those that stay at home go on from round to round.
    """

    trainer: Any
    module: torch.nn.Module
    parameters: Parameters
    local: Parameters = field(default_factory=dict)
    received: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    keeps_local: bool = True


class ClientAlgorithm:
    """Base of the client's half of an algorithm; override what it needs.

    Pass your own as ``client_app(algorithms=(Mine,))``, or to :meth:`FlowerBridge.from_message`. It is made
    for a training message whose config names it under ``algorithm``, as the strategy of the same name does
    (an :class:`~lightning_fl_ext.AlgorithmStrategy`). One half is at work at a time.

    Its hooks run on every rank, with gradients averaged over ranks: they must do the same on all of them.
    A fit in which they could not is refused: parameters in shards, sparse gradients, optimizers that make or
    unscale gradients themselves or search for their step by the loss, manual optimization that passes
    Lightning's optimizers by.

    Args:
        settings: The server's config. Look up what concerns you, and raise if it is not as it should be.

    Attributes:
        name: What the server's config calls it.
        keeps: Whether it keeps a state from round to round. What is lost then is an error: the server's half
            counts on it.
        hands_in_last: Whether its update must be the weights at the end of the fit: other choices of
            ``submit``, and weight averaging, are then refused.

    Example:
        >>> class Noisy(ClientAlgorithm):
        ...     name = "noisy"
        ...     def before_step(self, fit, parameters, optimizer):
        ...         for parameter in parameters.values():
        ...             parameter.grad.add_(torch.randn_like(parameter), alpha=0.01)
        >>> Noisy({"algorithm": "noisy"})
        Noisy()
    """

    name: ClassVar[str] = ""
    keeps: ClassVar[bool] = False
    hands_in_last: ClassVar[bool] = False

    def __init__(self, settings: Mapping[str, object]) -> None:
        self.settings = settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def on_fit_start(self, fit: LocalFit) -> None:
        """Called when the module is placed and holds the global weights."""

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Called before each step of an optimizer.

        Gradients were accumulated, averaged over ranks and unscaled, and are not yet clipped.

        Args:
            fit: The fit.
            parameters: Those of the optimizer that travel and are trained; all have a gradient, which is zero
                where the loss did not reach them. None is called for where it reached none of them.
            optimizer: The optimizer.
        """

    def on_fit_end(self, fit: LocalFit) -> Mapping[str, torch.Tensor]:
        """Called when training has ended.

        Returns:
            What is sent beside the weights: as the strategy's ``expected`` says.
        """
        return {}
