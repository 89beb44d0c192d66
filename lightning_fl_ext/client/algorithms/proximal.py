"""FedProx on the client: a pull towards the global weights, added to gradients."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext.errors import LightningFLError


class ProximalTerm(Callback):
    """Adds ``mu * (w - w_global)`` to gradients: FedProx (Li et al. 2020, arXiv:1812.06127, section 3.2).

    That is the gradient of ``mu / 2 * ||w - w_global||²`` in the loss. It is added once for every step of an
    optimizer, to that optimizer's own parameters, after gradients were accumulated, averaged over ranks and
    unscaled (16-mixed), and before they are clipped. A parameter that the loss did not reach in this step is
    pulled all the same; a step in which none of the optimizer's parameters has a gradient is left alone.

    A bridge made by :meth:`FlowerBridge.from_message` has one of its own where the server's configuration
    holds ``proximal-mu``. As a callback it pulls towards the weights at the start of its first fit. Weights
    are held once more in memory.

    Args:
        mu: How strongly; 0 adds nothing.

    Raises:
        ValueError: ``mu`` is negative or not finite.

    Example:
        ``Trainer(callbacks=[ProximalTerm(0.1)])``
    """

    def __init__(self, mu: float) -> None:
        if isinstance(mu, bool) or not isinstance(mu, int | float) or not 0 <= mu < math.inf:
            raise ValueError(f"`mu` must be a finite number of at least 0. Got {mu!r}.")
        self.mu = float(mu)
        self._anchors: dict[str, torch.Tensor] = {}
        self._near: dict[int, torch.Tensor] = {}
        self._steps = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mu={self.mu:g})"

    def anchor(self, module: torch.nn.Module, local_entries: Collection[str] = ()) -> None:
        """Pull towards the weights that a module has now.

        Args:
            module: Whose.
            local_entries: Names of parameters to leave alone, since they do not travel.
        """
        self._anchors = {
            name: parameter.detach().clone()
            for name, parameter in module.named_parameters()
            if name not in local_entries
        }

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when the module is built and placed: finds the parameters to pull.

        Raises:
            LightningFLError: The strategy shards parameters.
        """
        if getattr(trainer.strategy, "restore_checkpoint_after_setup", False):
            raise LightningFLError(
                f"{self!r} (FedProx, the server's `proximal-mu`) needs whole parameters on each rank, and"
                f" `{type(trainer.strategy).__name__}` shards them. Use one device or DDP."
            )
        if not self._anchors:
            self.anchor(pl_module)
        self._steps = 0
        self._near = {
            id(parameter): self._anchors[name].to(parameter.device)
            for name, parameter in pl_module.named_parameters()
            if name in self._anchors
        }

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called before each step, with gradients unscaled and not yet clipped: adds the term.

        Raises:
            LightningFLError: Gradients are sparse, or the optimizer makes or unscales them itself.
        """
        self._steps += 1
        if not self.mu:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in parameters):
            return
        self._refuse(trainer, optimizer, parameters)
        with torch.no_grad():
            for parameter in parameters:
                near = self._near.get(id(parameter))
                if near is None or not parameter.requires_grad:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad.add_(parameter.detach() - near, alpha=self.mu)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when training ends.

        Raises:
            LightningFLError: Under manual optimization no step came by here.
        """
        if self.mu and not pl_module.automatic_optimization and not self._steps:
            raise LightningFLError(
                f"{self!r} (FedProx, the server's `proximal-mu`) saw no step of an optimizer, so its term was"
                f" never added. `{type(pl_module).__name__}` optimizes manually: step what"
                " `self.optimizers()` gives, not `self.optimizers(use_pl_optimizer=False)` or an optimizer"
                " of your own."
            )

    def _refuse(self, trainer: Any, optimizer: Any, parameters: list[torch.nn.Parameter]) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        reason = None
        if any(p.grad is not None and p.grad.layout is not torch.strided for p in parameters):
            reason = "has sparse gradients: build embeddings with `sparse=False`"
        elif any(getattr(p, "grad_sample", None) is not None for p in parameters):
            reason = "makes its gradients from those of single examples (Opacus) and would drop the term"
        elif scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            reason = "unscales its gradients itself: use `fused=False` with 16-mixed, or bf16-mixed"
        if reason:
            name = type(getattr(optimizer, "optimizer", optimizer)).__name__
            raise LightningFLError(f"{self!r} (FedProx) cannot add its term: `{name}` {reason}.")
