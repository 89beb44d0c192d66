"""A layer of learned on/off gates, which multiplies its input by one sample of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates.bernoulli import at_least_float32
from lightning_fl_ext.gates.checks import check_input, checked_groups
from lightning_fl_ext.gates.estimators import (
    Estimator,
    bernoulli_sample,
    check_estimator,
    open_probability,
)
from lightning_fl_ext.gates.relaxed import RELAXED
from lightning_fl_ext.gates.shrinking.plain import multiplied

__all__ = ["Evaluation", "StochasticGateModule"]

Evaluation = Literal["mean", "threshold", "sample"]
"""What a gate layer in evaluation mode multiplies by."""

DEFAULT_INIT_PROB = 0.9


class StochasticGateModule(nn.Module):
    r"""Multiply the input by stochastic gates whose open probabilities are learned.

    In training mode each forward draws the gates with `bernoulli_sample`. In evaluation mode it is
    deterministic, unless ``evaluation="sample"``. The probabilities are ``sigmoid(logits)``; `logits`, the
    only parameter, stays float32 (or float64) when the module is cast to a half precision, as under
    ``Trainer(precision="bf16-true")``, since a step of a learned probability is often smaller than bfloat16
    can tell. The output has the input's dtype.

    Shape:
        - Input: any; its dimensions from ``dim - len(num_gates) + 1`` to ``dim`` are those of the gates, or
          of `groups`.
        - Output: as the input.

    Args:
        num_gates: Number of gates along dimension `dim` (features, channels, tokens, stacked blocks), or
            a shape of gates along the dimensions that end at `dim`. The empty shape ``()`` is one gate for
            the whole input, such as the output of a residual block.
        dim: The last dimension of the input that the gates lie along. For the channels of an image: 1.
        init_prob: Probability in (0, 1) with which each gate is open at first. Default: 0.9.
        estimator: Where the gradient comes from, as in `bernoulli_sample`.
        temperature: Of a relaxed estimator, as in `bernoulli_sample`. May be changed during training.
        hard: As in `bernoulli_sample`.
        evaluation: In evaluation mode multiply by `probs` (``"mean"``), by 1 where they exceed one half and
            0 elsewhere (``"threshold"``), or by samples as in training (``"sample"``). `probs` is the mean of
            the gates that are 0 or 1, and at the default temperatures within 0.04 of that of the relaxed.
        per_example: Draw a sample for each index of dimension 0, the batch, rather than one for the whole
            batch. Where the gates lie along dimension 0 themselves, there is no batch and one sample.
        groups: The gate of each position along `dim`, as numbers from 0 to ``num_gates - 1``: one gate for
            several inputs, such as the features of an attention head. A shape of positions, along the
            dimensions that end at `dim`, is given as nested lists or a tensor. Default: a gate for each.
        gater: A module that computes the logits from the input, as ``(batch, *num_gates)`` (without
            ``batch`` where there is none): conditional computation (Bengio et al. 2013, arXiv:1308.3432).
            The layer then has no `logits` of its own.

    Attributes:
        logits: The parameter, of shape `num_gates`; None with a `gater`.

    Raises:
        ValueError: If an argument is out of its range, or `init_prob` or ``per_example=False`` comes with a
            `gater`; in forward, if the input or the gater's logits have another shape than the gates.
        TypeError: In forward, if the input is no tensor, nested, or of an integer dtype or bool.

    Example:
        >>> gate = StochasticGateModule(3, init_prob=0.5)
        >>> _ = torch.manual_seed(0)
        >>> gate(torch.ones(2, 3))
        tensor([[1., 0., 1.],
                [1., 1., 0.]], grad_fn=<MulBackward0>)
        >>> gate.eval()(torch.ones(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]], grad_fn=<MulBackward0>)
        >>> gate.expected_open()
        tensor(1.5000, grad_fn=<DivBackward0>)
    """

    logits: nn.Parameter | None
    groups: Tensor | None

    def __init__(
        self,
        num_gates: int | tuple[int, ...],
        dim: int = -1,
        init_prob: float | None = None,
        estimator: Estimator = "probability",
        temperature: float | None = None,
        hard: bool = False,
        evaluation: Evaluation = "mean",
        per_example: bool = True,
        gater: nn.Module | None = None,
        groups: Tensor | Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.gate_shape = tuple(num_gates) if isinstance(num_gates, tuple | list) else (num_gates,)
        if not all(isinstance(size, int) and size > 0 for size in self.gate_shape):
            raise ValueError(f"`num_gates` must be a positive integer or a tuple of them. Got {num_gates!r}.")
        if init_prob is not None and not 0 < init_prob < 1:
            raise ValueError(
                f"`init_prob` must lie strictly between 0 and 1. Got {init_prob}. "
                "A gate that is open with probability 0 or 1 has no gradient and would never move."
            )
        check_estimator(estimator, temperature, hard)
        _check_evaluation(evaluation)
        if gater is not None and init_prob is not None:
            raise ValueError(
                "`init_prob` and `gater` exclude each other: a gater decides every probability. "
                "Drop `init_prob` and set the bias of the gater's last layer, or drop `gater`."
            )
        if gater is not None and not per_example:
            raise ValueError(
                "`per_example=False` and `gater` exclude each other: a gater gives every example its own "
                "probabilities. Drop one of them."
            )
        self.register_buffer(
            "groups", None if groups is None else checked_groups(groups, self.gate_shape), persistent=False
        )
        self.dim = dim
        self.init_prob = DEFAULT_INIT_PROB if init_prob is None else init_prob
        self.estimator: Estimator = estimator
        self.temperature = temperature
        self.hard = hard
        self.evaluation: Evaluation = evaluation
        self.per_example = per_example
        self.gater = gater
        self.conditional_probs: Tensor | None = None
        # A hook, since torch's fused encoder layer would pass by a gate within it, were there none.
        self.register_forward_pre_hook(check_input, with_kwargs=True)
        if gater is None:
            self.logits = nn.Parameter(torch.empty(self.gate_shape, dtype=torch.float32))
            self.reset_parameters()
        else:
            self.register_parameter("logits", None)

    def reset_parameters(self) -> None:
        """Set every gate's probability back to `init_prob`; a `gater` is left as it is."""
        if self.logits is not None:
            nn.init.constant_(self.logits, math.log(self.init_prob / (1 - self.init_prob)))

    @property
    def probs(self) -> Tensor:
        """Open probabilities, differentiable: `num_gates`, or with a `gater` the last forward's, by example.

        Raises:
            RuntimeError: If there is a `gater` and no forward yet.
        """
        if self.logits is not None:
            return torch.sigmoid(self.logits)
        if self.conditional_probs is None:
            raise RuntimeError(
                "The probabilities of a `StochasticGateModule` with a `gater` depend on its input, and it "
                "has had none yet. Call forward first."
            )
        return self.conditional_probs

    def expected_open(self) -> Tensor:
        """Expected number of gates that are not 0, the usual penalty: differentiable, without dimensions.

        The sum of `open_probability`; with a `gater`, its mean over the examples of the last forward.
        """
        probs = open_probability(self.probs, self.estimator, temperature=self.temperature, hard=self.hard)
        examples = max(1, probs.numel() // math.prod(self.gate_shape))
        return probs.sum() / examples

    @torch.no_grad()
    def bake(self, rule: Evaluation = "threshold") -> nn.Module:
        """Make a plain module that multiplies by these gates as they are, for good.

        It is of torch's own class: it is exported, and loads, without this package. Gates that are all open
        become ``nn.Identity``. `shrink` removes closed ones from the layers around them too.

        Args:
            rule: ``"threshold"``: 1 where a gate is open more likely than not, else 0; ``"mean"``: its
                probability; ``"sample"``: one draw for all examples, from torch's generator.

        Raises:
            ValueError: If `rule` is none of these, or there is a `gater`, whose gates are not fixed.
        """
        _check_evaluation(rule, "rule")
        if self.logits is None:
            raise ValueError("Gates with a `gater` depend on the input: there is nothing to fix.")
        gates = self.probs
        if rule == "threshold":
            gates = (gates > 0.5).to(gates.dtype)
        elif rule == "sample":
            how: dict[str, Any] = {"temperature": self.temperature, "hard": self.hard}
            gates = bernoulli_sample(gates, self.estimator, **how)
        gates = self._by_position(gates)
        if bool((gates == 1).all()):
            return nn.Identity()
        return multiplied(gates, self.dim)

    @torch.no_grad()
    def open_positions(self) -> Tensor:
        """Where a gate is open more likely than not: bool, of the shape of the gates, or of `groups`.

        Raises:
            RuntimeError: See `probs`.
        """
        return self._by_position(self.probs > 0.5)

    def _by_position(self, gates: Tensor) -> Tensor:
        """The gate of each position, if groups share them; leading dimensions stay."""
        return gates if self.groups is None else gates[..., self.groups]

    def forward(self, input: Tensor) -> Tensor:
        """Gate the input."""
        start, end = self._gated_dimensions(input)
        batch = input.shape[: min(start, 1)]
        probs = self.probs if self.gater is None else self._condition(self.gater, input, batch)
        if self.training or self.evaluation == "sample":
            if self.per_example:
                probs = probs.expand(batch + self.gate_shape)
            gates = bernoulli_sample(probs, self.estimator, temperature=self.temperature, hard=self.hard)
        elif self.evaluation == "mean":
            gates = probs
        else:
            _check_evaluation(self.evaluation)
            gates = probs > 0.5
        leading = gates.shape[: gates.ndim - len(self.gate_shape)]
        between = (1,) * (start - 1) if leading else ()
        after = (1,) * (input.ndim - end)
        gates = self._by_position(gates.to(input.dtype))
        return input * gates.reshape(leading + between + input.shape[start:end] + after)

    def _gated_dimensions(self, input: Tensor) -> tuple[int, int]:
        """The input's dimensions that the gates lie along, as the bounds of a slice."""
        end = (self.dim if self.dim >= 0 else self.dim + input.ndim) + 1
        shape = self.gate_shape if self.groups is None else tuple(self.groups.shape)
        start = end - len(shape)
        if start < 0 or end > input.ndim or input.shape[start:end] != shape:
            raise ValueError(
                "The input of a `StochasticGateModule` must have the shape of the gates along the dimensions "
                f"that end at `dim`={self.dim}.\n"
                f"shape of the gates: {shape}\n"
                f"shape of the input: {tuple(input.shape)}\n"
                "Change `num_gates`, or `dim` (for the channels of images it is 1)."
            )
        return start, end

    def _condition(self, gater: nn.Module, input: Tensor, batch: torch.Size) -> Tensor:
        logits = gater(input)
        if logits.shape != batch + self.gate_shape:
            raise ValueError(
                "The `gater` of a `StochasticGateModule` must return one logit for each example and gate.\n"
                f"shape expected: {tuple(batch + self.gate_shape)}\n"
                f"shape returned: {tuple(logits.shape)}"
            )
        probs = torch.sigmoid(logits.to(at_least_float32(logits.dtype)))
        if not torch.compiler.is_exporting():  # An exported graph has no attributes to keep them in.
            self.conditional_probs = probs
        return probs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` as ``nn.Module`` does, but move the logits only: never to a half precision."""

        def wide(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            dtype = at_least_float32(converted.dtype)
            return converted if converted.dtype == dtype else tensor.to(converted.device, dtype)

        if recurse:
            for child in self.children():
                child._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(wide, recurse=False)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The last forward's probabilities hang on a graph, which can be neither copied nor pickled.
        return {**self.__dict__, "conditional_probs": None}

    def extra_repr(self) -> str:
        """The settings, in the constructor's words."""
        relaxed = f", temperature={self.temperature}, hard={self.hard}" if self.estimator in RELAXED else ""
        return (
            f"{self.gate_shape}, dim={self.dim}, estimator={self.estimator!r}{relaxed}, "
            f"evaluation={self.evaluation!r}, per_example={self.per_example}"
        )


def _check_evaluation(evaluation: str, argument: str = "evaluation") -> None:
    if evaluation not in get_args(Evaluation):
        raise ValueError(
            f"`{argument}` must be one of {', '.join(get_args(Evaluation))}. Got {evaluation!r}."
        )
