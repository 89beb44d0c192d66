"""An algorithm in a Trainer's hooks: which parameters are its, and set-ups in which it could not work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit, Parameters
from lightning_fl_ext.client.algorithms.manual_steps import ManualSteps
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.text import shown


class AlgorithmHooks(Callback):
    """Runs the client's half of an algorithm in a fit.

    A bridge made by :meth:`FlowerBridge.from_message` has one where the server asks for an algorithm. As a
    callback of its own it takes the weights at the start of a fit for the global ones.

    Args:
        algorithm: The client's half.

    Attributes:
        sent: After the fit, what goes to the server beside the weights.
        fit: The fit at work, or the last one.

    Example:
        ``Trainer(callbacks=[AlgorithmHooks(ProximalTerm({"proximal-mu": 0.1}))])``
    """

    def __init__(self, algorithm: ClientAlgorithm) -> None:
        self.algorithm = algorithm
        self.sent: dict[str, torch.Tensor] = {}
        self.fit: LocalFit | None = None
        self._steps = 0
        self._manual: ManualSteps | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.algorithm!r})"

    def start(
        self,
        trainer: Any,
        module: torch.nn.Module,
        local_entries: Collection[str] = (),
        travelled: Collection[str] = (),
        received: Mapping[str, torch.Tensor] | None = None,
        kept: Mapping[str, torch.Tensor] | None = None,
        keeps_local: bool = True,
    ) -> None:
        """Begin a fit.

        Args:
            trainer: The Trainer.
            module: Placed, and with the global weights.
            local_entries: Names of what stays at home.
            travelled: Names of what came, which go before other names of tied tensors.
            received: What came beside the weights.
            kept: The state from before.
            keeps_local: Whether what stays at home goes on from round to round.

        Raises:
            LightningFLError: The strategy shards parameters.
        """
        if getattr(trainer.strategy, "restore_checkpoint_after_setup", False):
            raise LightningFLError(
                f"{self._what} needs whole parameters on each rank, and `{type(trainer.strategy).__name__}`"
                " shards them. Use one device or DDP."
            )
        self._steps = 0
        automatic = getattr(module, "automatic_optimization", True)
        self._manual = None if automatic else ManualSteps(trainer.optimizers)
        parameters, local = _divide(module, local_entries, travelled)
        self.fit = LocalFit(trainer, module, parameters, local, received or {}, dict(kept or {}), keeps_local)
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self.algorithm.on_fit_start(self.fit)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when the module is built and placed: begins a fit from the weights it has.

        Raises:
            LightningFLError: The strategy shards parameters.
        """
        self.start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called before each step, with gradients unscaled and not yet clipped: the algorithm's part in it.

        Raises:
            LightningFLError: Gradients are sparse, or the optimizer makes or unscales them itself, or
                searches for its step by the loss.
        """
        assert self.fit is not None
        self._steps += 1
        if self._manual:
            self._manual.tell(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in parameters):
            return
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._refuse(optimizer, parameters, scaled)
        if scaled and not all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters):
            return  # the scaler skips this step
        own: Parameters = {}
        for parameter in parameters:
            name = self._names.get(id(parameter))
            if name is not None and parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                own[name] = parameter
        with torch.no_grad():
            self.algorithm.before_step(self.fit, own, optimizer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when training ends: takes what is sent, and what is kept.

        Raises:
            LightningFLError: Under manual optimization steps did not come by here; or a state would be lost,
                since the algorithm does not say that it keeps one.
            TypeError: What the algorithm sends or keeps is not tensors by name.
        """
        assert self.fit is not None
        if self._manual and ((passed := self._manual.end()) or not self._steps):
            saw, which = f"did not see all steps of {', '.join(passed)}", "those"
            if not self._steps:
                saw, which = "saw no step of an optimizer", "any"
            raise LightningFLError(
                f"{self._what} {saw}, so it had no part in {which}."
                f" `{type(pl_module).__name__}` optimizes manually: step what `self.optimizers()` gives, not"
                " `self.optimizers(use_pl_optimizer=False)`, its `.optimizer`, or an optimizer of your own."
            )
        with torch.no_grad():
            self.sent = self._tensors("must return", self.algorithm.on_fit_end(self.fit))
            self.fit.kept = self._tensors("must leave in `fit.kept`", self.fit.kept)
        if self.fit.kept and not self.algorithm.keeps:
            names = ", ".join(f"`{name}`" for name in list(self.fit.kept)[:4])
            raise LightningFLError(
                f"`{type(self.algorithm).__name__}` leaves {names} in `fit.kept`, and it would be lost: with"
                " `keeps = True` in the class, and `clients_keep = True` in the strategy's, it goes on from"
                " round to round."
            )

    @property
    def _what(self) -> str:
        return f"{self.algorithm!r} (the server's algorithm `{self.algorithm.name}`)"

    def _tensors(self, what: str, values: Any) -> dict[str, torch.Tensor]:
        named = isinstance(values, Mapping) and all(isinstance(name, str) for name in values)
        if named and all(isinstance(value, torch.Tensor) for value in values.values()):
            return {name: value.detach() for name, value in values.items()}
        odd = {name: type(value).__name__ for name, value in values.items()} if named else values
        raise TypeError(
            f"`{type(self.algorithm).__name__}.on_fit_end` {what} tensors by name. Got {shown(odd)}."
        )

    def _refuse(self, optimizer: Any, parameters: list[torch.nn.Parameter], scaled: bool) -> None:
        reason = None
        if any(p.grad is not None and p.grad.layout is not torch.strided for p in parameters):
            reason = "has sparse gradients: build embeddings with `sparse=False`"
        elif any(getattr(p, "grad_sample", None) is not None for p in parameters):
            reason = "makes its gradients from those of single examples (Opacus) and would drop the change"
        elif scaled and getattr(optimizer, "_step_supports_amp_scaling", False):
            reason = "unscales its gradients itself: use `fused=False` with 16-mixed, or bf16-mixed"
        elif any(group.get("line_search_fn") for group in optimizer.param_groups):
            reason = "searches by the loss, which the change is no part of: leave `line_search_fn` out"
        if reason:
            name = type(getattr(optimizer, "optimizer", optimizer)).__name__
            raise LightningFLError(f"{self._what} cannot change gradients: `{name}` {reason}.")


def _divide(
    module: torch.nn.Module, local_entries: Collection[str], travelled: Collection[str]
) -> tuple[Parameters, Parameters]:
    """Give a module's parameters by name: those that travel, and those that stay at home; each once."""
    named = list(module.named_parameters(remove_duplicate=False))
    named.sort(key=lambda item: item[0] not in travelled)
    first: dict[int, str] = {}
    once = {name: p for name, p in named if first.setdefault(id(p), name) == name}
    local = {name: once.pop(name) for name in local_entries if name in once}
    return once, local
