"""A Trainer callback that shows what the stochastic gates of a module do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_fl_ext.gates import StochasticGateModule

__all__ = ["GateMonitor"]

# Trainers and LightningModules are typed `Any`: they may come from lightning.pytorch or pytorch_lightning.


def named_gates(module: nn.Module) -> Iterator[tuple[str, StochasticGateModule]]:
    """The gate layers within `module` that have probabilities, by their names without ``torch.compile``."""
    for name, child in module.named_modules():
        if isinstance(child, StochasticGateModule):
            if child.gater is not None and child.conditional_probs is None:
                continue  # No forward yet.
            yield ".".join(part for part in name.split(".") if part != "_orig_mod"), child


@torch.no_grad()
def gate_statistics(gate: StochasticGateModule) -> dict[str, Tensor]:
    """What `GateMonitor` logs of one gate layer, as tensors without dimensions."""
    probs = gate.probs
    entropy = torch.special.entr(probs) + torch.special.entr(1 - probs)
    return {
        "open_fraction": (probs > 0.5).float().mean(),
        "expected_open": gate.expected_open(),
        "entropy": entropy.mean() / math.log(2),
    }


class GateMonitor(Callback):
    """Log the state of every `StochasticGateModule` in the LightningModule.

    For a gate layer at ``net.gate`` these are logged, every ``Trainer(log_every_n_steps=...)`` steps and at
    the end of each training epoch:

    - ``net.gate/open_fraction``: the fraction of its gates whose open probability exceeds one half;
    - ``net.gate/expected_open``: `StochasticGateModule.expected_open`, a number of gates;
    - ``net.gate/entropy``: the mean entropy of a gate, in bits: 1 undecided, 0 decided;
    - ``gates_open``: the open fraction over the gates of all layers, which the progress bar shows too.

    Each is there for other callbacks to monitor. At the end of each training epoch, a logger whose experiment
    has an ``add_histogram`` method (TensorBoard) also gets the histogram ``net.gate/probs``. The values of a
    layer with a `gater` are those of its last forward.

    It works in a Trainer of ``lightning.pytorch`` and in one of ``pytorch_lightning``, and draws no random
    numbers: the fit is the same with it and without.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GateMonitor()], logger=False, enable_checkpointing=False)
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when fit begins: warns if there is nothing to monitor."""
        if not any(isinstance(module, StochasticGateModule) for module in pl_module.modules()):
            rank_zero_warn(
                f"`GateMonitor` logs nothing: {type(pl_module).__name__} holds no `StochasticGateModule`."
            )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called when a training batch ends: logs, in the steps in which the Trainer does."""
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:
            self._log(pl_module, on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Called when a training epoch ends, after its validation: logs, and writes the histograms."""
        self._log(pl_module, on_step=False, on_epoch=True, sync_dist=True)
        for logger in trainer.loggers:
            add_histogram = getattr(logger.experiment, "add_histogram", None)
            if add_histogram is not None:
                for name, gate in named_gates(pl_module):
                    add_histogram(f"{name}/probs", gate.probs.detach().cpu(), trainer.global_step)

    def _log(self, pl_module: Any, **how: bool) -> None:
        statistics = {name: gate_statistics(gate) for name, gate in named_gates(pl_module)}
        if not statistics:
            return
        for name, values in statistics.items():
            pl_module.log_dict({f"{name}/{key}": value for key, value in values.items()}, batch_size=1, **how)
        sizes = [math.prod(gate.gate_shape) for _, gate in named_gates(pl_module)]
        opened = sum(
            values["open_fraction"] * size for values, size in zip(statistics.values(), sizes, strict=True)
        )
        pl_module.log("gates_open", opened / sum(sizes), prog_bar=True, batch_size=1, **how)

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer binds these to the LightningModule, which must not travel or live on with the callback.
        return {k: v for k, v in self.__dict__.items() if k not in ("log", "log_dict")}
