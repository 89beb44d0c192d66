"""A Trainer callback that leads the temperature of gates, and a penalty on open ones, over the epochs."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from lightning_fl_ext.callbacks.gate_target import gate_layers
from lightning_fl_ext.gates.relaxed import RELAXED
from lightning_fl_ext.gates.stochastic import StochasticGateModule

__all__ = ["GateSchedule"]

Shape = Literal["linear", "cosine", "exponential"]


class GateSchedule(Callback):
    r"""Lead the temperature of relaxed gates, and a penalty on open gates, from one value to another.

    With :math:`t` going from 0 in the first epoch to 1 in the last, a value is :math:`a + (b - a) t`
    (``"linear"``), :math:`b + (a - b) (1 + \cos \pi t) / 2` (``"cosine"``) or :math:`a (b / a)^t`
    (``"exponential"``).

    The penalty is :math:`\lambda` times `StochasticGateModule.expected_open`, summed over all layers. Its
    gradient is added to that of the loss before every optimizer step: the training step needs no term for
    it, and a logged loss does not hold it. Like a term in the loss, it is clipped with the other gradients.

    Both values are logged in every step, as ``gate_temperature`` and ``gate_penalty``, and shown in the
    progress bar. A resumed fit goes on where it was; `Trainer.validate` and `Trainer.test` with a checkpoint
    use its temperature.

    Args:
        temperature: Of relaxed gates, first and last; positive. Default: they keep theirs.
        penalty: :math:`\lambda`, first and last; not negative. Default: none.
        shape: Of the way between them.
        round: In a federation: which round this fit is, from 1, and of how many. The way then goes over the
            epochs of all rounds. In a `client_app`, a ``trainer`` that is a function gets both:
            ``lambda r: {"callbacks": [GateSchedule(..., round=(r.server_round, r.max_rounds))]}``.

    Raises:
        ValueError: There is nothing to lead, or a value is out of its range. When a fit begins: it has no
            known number of epochs; there is a temperature and no relaxed gates, or a penalty and no gates, or
            gates with a `gater`, or sharded ones.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> schedule = GateSchedule(temperature=(1.0, 0.1), penalty=(0.0, 1e-3), shape="linear")
        >>> [round(schedule.at(epoch, 5)["temperature"], 3) for epoch in range(5)]
        [1.0, 0.775, 0.55, 0.325, 0.1]
        >>> trainer = Trainer(callbacks=[schedule], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        temperature: tuple[float, float] | None = None,
        penalty: tuple[float, float] | None = None,
        shape: Shape = "cosine",
        round: tuple[int, int] | None = None,
    ) -> None:
        if shape not in get_args(Shape):
            raise ValueError(f"`shape` must be one of {', '.join(get_args(Shape))}. Got {shape!r}.")
        if temperature is None and penalty is None:
            raise ValueError(
                "`GateSchedule` needs a `temperature` or a `penalty`, each with first and last value."
            )
        for name, pair in (("temperature", temperature), ("penalty", penalty)):
            zero = name == "penalty" and shape != "exponential"
            if pair is None:
                continue
            if len(pair) != 2 or not all(math.isfinite(v) and (v > 0 or (zero and v == 0)) for v in pair):
                kind = "numbers from 0 on" if zero else "positive numbers"
                raise ValueError(f"`{name}` must be two {kind}, the first and the last. Got {pair}.")
        if round is not None and not 1 <= round[0] <= round[1]:
            raise ValueError(f"`round` must be the round, from 1, and how many there are. Got {round}.")
        self.temperature = temperature
        self.penalty = penalty
        self.shape: Shape = shape
        self.round = (1, 1) if round is None else round
        self.current: dict[str, float] = {}

    def at(self, epoch: int, epochs: int) -> dict[str, float]:
        """The values in an epoch, from 0, of a fit of so many."""
        number, rounds = self.round
        last = rounds * epochs - 1
        t = min(1.0, ((number - 1) * epochs + epoch) / last) if last > 0 else 1.0
        ways = {"temperature": self.temperature, "penalty": self.penalty}
        return {name: _between(*pair, t, self.shape) for name, pair in ways.items() if pair is not None}

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when fit begins: refuses what it cannot lead."""
        layers = gate_layers(pl_module)
        if not layers:
            raise ValueError(f"`GateSchedule`: {type(pl_module).__name__} holds no `StochasticGateModule`.")
        if self.temperature is not None and not any(gate.estimator in RELAXED for gate in layers.values()):
            raise ValueError(
                f"`GateSchedule(temperature=...)` needs gates with one of the estimators {', '.join(RELAXED)}"
                " as their `estimator`."
            )
        for name, gate in layers.items() if self.penalty is not None else ():
            if gate.logits is None:
                raise ValueError(
                    f"`GateSchedule(penalty=...)`: the probabilities of `{name}` belong to one forward of its"
                    f" `gater`. Add `self.{name}.expected_open()` to the loss instead."
                )
            if isinstance(gate.logits, DTensor):
                raise ValueError(f"`GateSchedule` cannot add to the gradients of `{name}`: they are sharded.")
        if (trainer.max_epochs or -1) < 1:
            raise ValueError("`GateSchedule` goes over the epochs of a fit: give the Trainer `max_epochs`.")
        self._take(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a training epoch begins: takes its values."""
        self._take(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called when a training batch begins: logs."""
        values = {f"gate_{name}": value for name, value in self.current.items()}
        pl_module.log_dict(values, prog_bar=True, on_step=True, on_epoch=False, batch_size=1)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Called before an optimizer step: adds the gradient of the penalty."""
        weight = self.current.get("penalty", 0.0)
        if not weight:
            return
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for gate in gate_layers(pl_module).values():
            logits = gate.logits
            if logits is None or id(logits) not in own or not logits.requires_grad:
                continue
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(weight * gate.expected_open(), logits)
            logits.grad = gradient if logits.grad is None else logits.grad + gradient

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when validation begins, also that of a checkpoint: its gates get its temperature."""
        self._set(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Called when a test begins: see :meth:`on_validation_start`."""
        self._set(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Give the current values."""
        return {"current": dict(self.current)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.current = dict(state_dict["current"])

    def _take(self, trainer: Any, pl_module: Any) -> None:
        self.current = self.at(trainer.current_epoch, trainer.max_epochs)
        self._set(pl_module)

    def _set(self, pl_module: Any) -> None:
        if "temperature" in self.current:
            for gate in gate_layers(pl_module).values():
                _heat(gate, self.current["temperature"])


def _heat(gate: StochasticGateModule, temperature: float) -> None:
    if gate.estimator in RELAXED:
        gate.temperature = temperature


def _between(first: float, last: float, t: float, shape: Shape) -> float:
    if shape == "linear":
        return first + (last - first) * t
    if shape == "cosine":
        return last + (first - last) * (1 + math.cos(math.pi * t)) / 2
    return first * math.pow(last / first, t)
