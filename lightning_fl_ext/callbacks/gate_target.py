"""A Trainer callback that has a module's gates end up open to a given degree."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.gates.projection import project_open_fraction
from lightning_fl_ext.gates.stochastic import StochasticGateModule
from lightning_fl_ext.once import warn_once

__all__ = ["GateTarget"]

log = logging.getLogger(__name__)


class GateTarget(Callback):
    """Reach a fraction of open gates, in place of a penalty whose weight has to be guessed.

    After every optimizer step it moves the gates, as little as possible, to where their expected open
    fraction (`StochasticGateModule.expected_open` over the number of gates) is what the schedule says, and
    leaves it to the loss which gates those are: :func:`~lightning_fl_ext.gates.project_open_fraction`. That
    holds the constraint exactly, and gives the multiplier of a Lagrangian in every step instead of learning
    it. The loss needs no term for the gates.

    The fraction goes from where it is at first to `open` along half a cosine, over the first part of the fit,
    and stays there. Ranks of a distributed fit compute the same. Fits of a federation start anew in each
    round: there, ``warmup=0`` holds the target from the first step on.

    Args:
        open: The expected fraction to reach, in (0, 1).
        warmup: Fraction of the fit's optimizer steps that the way takes, in [0, 1].
        per_layer: Whether every layer reaches `open`, instead of all of them together.
        costs: What one gate of a layer costs, by the layer's name in the module; `open` is then the fraction
            of the cost. :func:`~lightning_fl_ext.gates.gate_costs` measures it in parameters or in
            multiplications. Default: every gate costs the same.

    Raises:
        ValueError: An argument is out of range. When a fit begins: the module has no gates, a layer has a
            `gater`, `costs` names no layer or not all, or the fit has no known number of steps and `warmup`
            is not 0.

    Attributes:
        multiplier: Sum of all shifts so far, per unit of cost: negative if gates had to be closed. With
            `per_layer`, by layer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callbacks = [GateTarget(open=0.2)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        open: float,
        warmup: float = 0.5,
        per_layer: bool = False,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        if not 0 < open < 1:
            raise ValueError(f"`open` must lie strictly between 0 and 1. Got {open}.")
        if not 0 <= warmup <= 1:
            raise ValueError(f"`warmup` must be a fraction of the fit, from 0 to 1. Got {warmup}.")
        self.open = open
        self.warmup = warmup
        self.per_layer = per_layer
        self.costs = None if costs is None else dict(costs)
        self.multiplier: dict[str, float] = {}
        self._start: dict[str, float] = {}
        self._last_step = -1

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when fit begins: refuses what it cannot steer."""
        layers = gate_layers(pl_module)
        if not layers:
            raise ValueError(f"`GateTarget`: {type(pl_module).__name__} holds no `StochasticGateModule`.")
        for name, gate in layers.items():
            if gate.logits is None:
                raise ValueError(
                    f"`GateTarget` moves logits, and those of `{name}` are computed by its `gater`: add"
                    f" `self.{name}.expected_open()` to the loss instead."
                )
            if isinstance(gate.logits, DTensor):
                raise ValueError(f"`GateTarget` cannot move the logits of `{name}`: they are sharded.")
        if self.costs is not None and self.costs.keys() != layers.keys():
            raise ValueError(f"`costs` must name the gate layers {sorted(layers)}. Got {sorted(self.costs)}.")
        if self.warmup and not math.isfinite(trainer.estimated_stepping_batches):
            raise ValueError("`GateTarget(warmup=...)` needs `max_epochs` or `max_steps`; or use `warmup=0`.")
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when a training batch ends: after an optimizer step, moves the gates."""
        if trainer.global_step == self._last_step:
            return  # gradients are still being accumulated
        self._last_step = trainer.global_step
        layers = gate_layers(pl_module)
        groups = {name: {name: gate} for name, gate in layers.items()} if self.per_layer else {"": layers}
        for group, members in groups.items():
            costs = None if self.costs is None else [self.costs[name] for name in members]
            if group not in self._start:
                self._start[group] = _fraction(members, costs)
            start = self._start[group]
            part = 1.0
            if self.warmup:
                part = min(1.0, trainer.global_step / (self.warmup * trainer.estimated_stepping_batches))
            target = self.open + (start - self.open) * (1 + math.cos(math.pi * part)) / 2
            shift = project_open_fraction([*members.values()], target, costs)
            if not math.isfinite(shift):
                raise LightningFLError(
                    f"`GateTarget`: the logits of {sorted(members)} are not finite after step"
                    f" {trainer.global_step}"
                )
            self.multiplier[group] = self.multiplier.get(group, 0.0) + shift

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when training ends: says so if every gate is undecided, or closed."""
        gates = gate_layers(pl_module).values()
        if trainer.is_global_zero and not any(bool(gate.open_positions().any()) for gate in gates):
            text = (
                f"`GateTarget(open={self.open})` holds the expected fraction, but no gate is open more likely"
                " than not: they are undecided, and thresholded or shrunk all are closed. Train longer, or"
                " give the logits a larger learning rate."
            )
            warn_once(log, "", text)  # in a federation every fit of every client might say it

    def state_dict(self) -> dict[str, Any]:
        """Give where the fraction began, and the multipliers."""
        return {"start": dict(self._start), "multiplier": dict(self.multiplier)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self._start, self.multiplier = dict(state_dict["start"]), dict(state_dict["multiplier"])


def gate_layers(module: Any) -> dict[str, StochasticGateModule]:
    """The gate layers within a module, by their names without ``torch.compile``."""
    return {
        name.replace("_orig_mod.", ""): child
        for name, child in module.named_modules()
        if isinstance(child, StochasticGateModule)
    }


def _fraction(layers: Mapping[str, StochasticGateModule], costs: list[float] | None) -> float:
    weights = [1.0] * len(layers) if costs is None else costs
    sizes = [math.prod(gate.gate_shape) for gate in layers.values()]
    opened = [gate.expected_open().item() for gate in layers.values()]
    whole = sum(w * size for w, size in zip(weights, sizes, strict=True))
    return sum(w * count for w, count in zip(weights, opened, strict=True)) / whole
