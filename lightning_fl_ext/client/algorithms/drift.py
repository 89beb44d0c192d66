"""SCAFFOLD, FedNova and FedDyn on the client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm, LocalFit, Parameters
from lightning_fl_ext.client.algorithms.proximal import Scratch
from lightning_fl_ext.client.instruction_limits import InstructionError, number
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.text import shown


class ControlVariates(ClientAlgorithm):
    """SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II).

    Adds ``c - c_i`` to gradients. Afterwards ``c_i`` is the mean of the gradients along the path, before that
    was added and before clipping: under plain SGD of one rate the paper's ``c_i - c + (x - y_i) / (K * lr)``.
    Each optimizer's own steps count for its parameters. Sends by how much ``c_i`` has changed, and keeps it.
    """

    name = "scaffold"
    keeps = True
    hands_in_last = True

    def on_fit_start(self, fit: LocalFit) -> None:
        """Note how the server's control variate differs from this client's.

        Raises:
            LightningFLError: The server's is of other parameters than those trained here, or one is complex.
        """
        refuse_complex(self, fit)
        buffers = dict(fit.module.named_buffers())  # Flower's own `start` does not tell them from parameters
        received = {name: c for name, c in fit.received.items() if name not in buffers}
        self._still = {name: torch.zeros_like(c) for name, c in fit.received.items() if name in buffers}
        refuse_others(fit, received, "the server's control variates")
        if fit.kept:
            refuse_others(fit, fit.kept, "this client's control variates")
        self._shift: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._steps: Counter[str] = Counter()
        for name, control in received.items():
            own = fit.kept.get(name)
            shift = control if own is None else control - own
            parameter = fit.parameters[name]
            self._shift[name] = shift.to(parameter.device, parameter.dtype)
            self._sums[name] = torch.zeros_like(control, device=parameter.device)

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Count the gradient, then shift it."""
        self._steps.update(parameters.keys())
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            self._sums[name].add_(parameter.grad)
            parameter.grad.add_(self._shift[name])

    def on_fit_end(self, fit: LocalFit) -> Mapping[str, torch.Tensor]:
        """Make the new control variate."""
        changes = {}
        for name, total in self._sums.items():
            own = fit.kept.get(name, torch.zeros_like(total, device="cpu"))
            steps = self._steps[name]
            changes[name] = (total / steps).cpu() - own if steps else torch.zeros_like(own)
            fit.kept[name] = own + changes[name]  # what the server adds up, to the bit
        return {**changes, **self._still}


class NormalizedSteps(ClientAlgorithm):
    """FedNova (Wang et al. 2020, arXiv:2007.07481, section 4): sends ``||a_i||_1``, which is its normalizer.

    That is the number of steps under plain SGD of one rate. Under momentum a gradient counts for later steps
    as well, and under a schedule for its rate over the first. One SGD without dampening or Nesterov's
    momentum is expected, that begins afresh in each round.
    """

    name = "fednova"
    hands_in_last = True

    def on_fit_start(self, fit: LocalFit) -> None:
        """Look at the optimizer.

        Raises:
            LightningFLError: It has no normalizer, or a parameter is complex.
        """
        refuse_complex(self, fit)
        self._heavy = self._total = self._first = 0.0
        optimizers = [getattr(o, "optimizer", o) for o in fit.trainer.optimizers]
        kinds = [type(optimizer).__name__ for optimizer in optimizers]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        plain = all(not (g.get("dampening") or g.get("nesterov") or g.get("maximize")) for g in groups)
        if kinds != ["SGD"] or not plain or len({g["momentum"] for g in groups}) > 1:
            raise LightningFLError(
                "FedNova, which the server asks for, is defined for one SGD without dampening or Nesterov's"
                f" momentum. Got {', '.join(kinds)}{'' if plain else ' with one of these'}. Use such an SGD,"
                " or another strategy."
            )

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Count what this step's gradient, and those before it, are multiplied by.

        Raises:
            LightningFLError: Rates differ between groups, or momentum goes on from an earlier fit.
        """
        groups = optimizer.param_groups
        rate = float(groups[0]["lr"])
        if len({float(group["lr"]) for group in groups}) > 1:
            raise LightningFLError(
                "FedNova, which the server asks for, needs one learning rate. Got several, one for each group"
                " of parameters. Use one, or another strategy."
            )
        if not self._total:
            self._first = rate
            if any(state.get("momentum_buffer") is not None for state in optimizer.state.values()):
                raise LightningFLError(
                    "FedNova, which the server asks for, needs momentum to begin afresh in each round, and it"
                    " goes on from the one before. Leave `keep_optimizer` out, or use another strategy."
                )
        self._heavy = float(groups[0]["momentum"]) * self._heavy + 1
        self._total += rate * self._heavy

    def on_fit_end(self, fit: LocalFit) -> Mapping[str, torch.Tensor]:
        """Send the normalizer.

        Raises:
            LightningFLError: There was no step of a positive rate.
        """
        if not self._total > 0 or not self._first > 0:
            raise LightningFLError(
                "FedNova, which the server asks for, needs a first step of a positive learning rate. Got"
                " none: begin a warm-up above 0."
            )
        return {"normalizer": torch.tensor(self._total / self._first, dtype=torch.float64)}


class DynamicRegularizer(ClientAlgorithm):
    """FedDyn (Acar et al. 2021, arXiv:2111.04263, algorithm 1).

    Adds ``alpha * (w - w_global) - g_i`` to gradients. Afterwards ``g_i`` becomes
    ``g_i - alpha * (w - w_global)``, and is kept. Both are a pull towards ``w_global + g_i / alpha``, which
    is held in memory beside ``g_i``, and room for the largest tensor.

    Args:
        settings: The server's config; ``feddyn-alpha`` says how strongly.

    Raises:
        InstructionError: It is missing, not above 0 or not finite.
    """

    name = "feddyn"
    keeps = True
    hands_in_last = True

    def __init__(self, settings: Mapping[str, object]) -> None:
        super().__init__(settings)
        self.alpha = number("feddyn-alpha", settings.get("feddyn-alpha"))
        if not self.alpha:
            raise InstructionError("the server's config `feddyn-alpha`: expected a number above 0, got 0")
        self._scratch = Scratch()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha:g})"

    def on_fit_start(self, fit: LocalFit) -> None:
        """Note what to pull towards.

        Raises:
            LightningFLError: This client's linear term is of other parameters than those that travel, or one
                of these is complex.
        """
        refuse_complex(self, fit)
        if fit.kept:
            refuse_others(fit, fit.kept, "this client's linear terms")
        self._towards: dict[str, torch.Tensor] = {}
        for name, parameter in fit.parameters.items():
            if parameter.is_floating_point():
                wide = torch.promote_types(parameter.dtype, torch.float32)  # terms are small beside weights
                towards = parameter.detach().to(wide, copy=True)
                if name in fit.kept:
                    towards.add_(fit.kept[name].to(towards.device, wide), alpha=1 / self.alpha)
                self._towards[name] = towards

    def before_step(self, fit: LocalFit, parameters: Parameters, optimizer: Any) -> None:
        """Add both terms."""
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            moved = self._scratch.difference(parameter, self._towards[name])
            parameter.grad.add_(moved, alpha=self.alpha)

    def on_fit_end(self, fit: LocalFit) -> Mapping[str, torch.Tensor]:
        """Make the new linear term."""
        for name, towards in self._towards.items():
            fit.kept[name] = ((towards - fit.parameters[name].detach()) * self.alpha).cpu()
        return {}


def refuse_complex(half: ClientAlgorithm, fit: LocalFit) -> None:
    """Refuse parameters that travel and are complex: the server's half knows real ones alone.

    Raises:
        LightningFLError: Names one.
    """
    if taken := [name for name, parameter in fit.parameters.items() if parameter.is_complex()]:
        raise LightningFLError(
            f"`{half.name}`, which the server asks for, is defined for real parameters. Got the complex"
            f" `{shown(taken[0])}`: hold its parts as real numbers, leave it at home, or use another"
            " strategy."
        )


def refuse_others(fit: LocalFit, arrays: Mapping[str, torch.Tensor], whose: str) -> None:
    """Refuse arrays that are not those of the parameters that travel.

    Args:
        fit: The fit.
        arrays: One for each of its floating parameters, of its shape.
        whose: For the message.

    Raises:
        LightningFLError: Names the difference.
    """
    floats = {name: p for name, p in fit.parameters.items() if p.is_floating_point()}
    wrong = sorted(
        name
        for name in {*floats, *arrays}
        if name not in floats
        or name not in arrays
        or floats[name].shape != arrays[name].shape
        or not arrays[name].is_floating_point()
    )
    if wrong:
        first = wrong[0]
        raise LightningFLError(
            f"{whose} are for {len(arrays)} parameters, and {len(floats)} travel here. They differ at"
            f" {shown(wrong[:5])}: `{shown(first)}` is {_kind(arrays.get(first))}, expected"
            f" {_kind(floats.get(first))}. Both sides must use the same model and the same exchange, in all"
            " rounds of a run."
        )


def _kind(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
