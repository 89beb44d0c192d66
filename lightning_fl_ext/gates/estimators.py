r"""One function over every single-sample estimator of the gradient of a Bernoulli gate.

Whatever the estimator, one uniform number `u` decides: a gate is open when ``u < probs``. The binary
estimators return that bit and differ in the factor by which the incoming gradient is multiplied. The
relaxed ones return :math:`z = h((Q(p) - Q(u)) / \tau)`, where `Q` is the quantile function of a symmetric
distribution and `h` increases from 0 to 1 with :math:`h(0) = 1/2`: above one half exactly when the gate is
open, and closer to the bit the lower the temperature.
"""

from __future__ import annotations

from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from lightning_fl_ext.gates.bernoulli import (
    BernoulliSample,
    at_least_float32,
    check_probabilities,
    sample_gates,
    uniform_like,
)
from lightning_fl_ext.gates.relaxed import RELAXED, only_backward, relaxed_sample

__all__ = ["Estimator", "bernoulli_sample", "open_probability"]

Estimator = Literal["probability", "identity", "reinmax", "concrete", "hard_concrete", "gaussian"]
"""The names that `bernoulli_sample` knows."""


def check_estimator(estimator: str, temperature: float | None, hard: bool) -> None:
    """Raise ValueError unless `estimator` is known and takes the other arguments."""
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` must be one of {', '.join(get_args(Estimator))}. Got {estimator!r}.")
    if estimator not in RELAXED and (hard or temperature is not None):
        raise ValueError(
            f"`temperature` and `hard` belong to the relaxed estimators ({', '.join(RELAXED)}). "
            f"Got temperature={temperature}, hard={hard} with estimator={estimator!r}."
        )
    if temperature is not None and not temperature > 0:
        raise ValueError(f"`temperature` must be positive. Got {temperature}.")


class _ConstantFactor(torch.autograd.Function):
    """A sample, and the gradient times 1 or 1 / 2 P(b), with no tensors but the sample and the factor."""

    @staticmethod
    def forward(ctx: Any, probs: Tensor, estimator: Estimator) -> Tensor:
        """Draw."""
        sample = sample_gates(probs)
        ctx.factor = _one_half_over(sample, probs) if estimator == "reinmax" else None
        return sample

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        """Multiply by the factor."""
        return grad_output if ctx.factor is None else grad_output * ctx.factor, None


def _one_half_over(sample: Tensor, probs: Tensor) -> Tensor:
    """1 / 2 P(b), with P(b) = p if open, else 1 - p, to the bit."""
    of_sample = (1 - sample).sub_(probs.detach()).abs_()
    return of_sample.clamp_min_(torch.finfo(probs.dtype).tiny).reciprocal_().mul_(0.5)


def _straight_through(sample: Tensor, carrier: Tensor, factor: Tensor | None = None) -> Tensor:
    """`sample`, with `factor` times the derivatives of `carrier`."""
    nothing = carrier - carrier.detach()
    return sample + nothing if factor is None else torch.addcmul(sample, factor, nothing)


def bernoulli_sample(
    probs: Tensor,
    estimator: Estimator = "probability",
    *,
    temperature: float | None = None,
    hard: bool = False,
) -> Tensor:
    r"""Sample gates that are open with probability `probs`, with a gradient for `probs`.

    With :math:`p` the probability, :math:`b` the sample, :math:`g` the gradient that comes in:

    ================= ========================== ======================================================
    `estimator`       gradient passed to `probs`  source
    ================= ========================== ======================================================
    ``probability``   :math:`p g`                `BernoulliSample`; supermasks (arXiv:1905.01067), FedPM
                                                 (arXiv:2209.15328)
    ``identity``      :math:`g`                  straight-through, Bengio et al. 2013, section 4
                                                 (arXiv:1308.3432)
    ``reinmax``       :math:`g / 2 P(b)`         Liu et al. 2023 (arXiv:2304.08612), for two outcomes
    ``concrete``      of the relaxed sample      Maddison et al. 2017 (arXiv:1611.00712), Jang et al.
                                                 2017 (arXiv:1611.01144)
    ``hard_concrete`` of the relaxed sample      Louizos et al. 2018 (arXiv:1712.01312), stretched to
                                                 (-0.1, 1.1) and clamped
    ``gaussian``      of the relaxed sample      stochastic gates, Yamada et al. 2020 (arXiv:1810.04247)
    ================= ========================== ======================================================

    The first three give 0 or 1, the other three numbers in [0, 1] that exceed one half with probability
    `probs`. For the same seed all six open the same gates. None of them is unbiased for every loss; their
    measured bias and spread are in the guide to gates.

    Args:
        probs: Probabilities in [0, 1], of any shape and real floating dtype.
        estimator: Which gradient; see above.
        temperature: Of the relaxed estimators: lower is closer to 0 and 1, with a noisier gradient. The
            default is the customary value: 0.3 for ``concrete``, 2/3 for ``hard_concrete``, 2 for
            ``gaussian`` (the noise has standard deviation 1 / temperature).
        hard: Return the relaxed estimator's gates as 0 or 1, with the gradient of the relaxed sample.

    Returns:
        The sample, with the shape, dtype and device of `probs`. Every estimator but ``probability`` has
        forward-mode derivatives; in a second differentiation the factors 1 and ``1 / 2 P(b)`` are constants.

    Raises:
        TypeError: If `probs` is not a tensor, or is integer, bool or complex.
        ValueError: If a probability is NaN or outside [0, 1] (where values can be looked at, see
            `BernoulliSample`), `estimator` is unknown, `temperature` is not positive, or `temperature` or
            `hard` is given for an estimator whose samples are always 0 or 1.

    Example:
        >>> probs = torch.tensor([0.2, 0.5, 0.9], requires_grad=True)
        >>> _ = torch.manual_seed(1)
        >>> bernoulli_sample(probs, "identity")
        tensor([0., 1., 1.], grad_fn=<...>)
        >>> _ = torch.manual_seed(1)
        >>> bernoulli_sample(probs, "hard_concrete")
        tensor([0.0000, 0.8667, 1.0000], grad_fn=<...>)
    """
    check_estimator(estimator, temperature, hard)
    if estimator == "probability":
        return cast(Tensor, BernoulliSample.apply(probs))  # type: ignore[no-untyped-call]
    if estimator in ("identity", "reinmax"):
        if isinstance(probs, Tensor) and only_backward(probs):
            return cast(Tensor, _ConstantFactor.apply(probs, estimator))  # type: ignore[no-untyped-call]
        sample = sample_gates(probs)
        return _straight_through(
            sample, probs, None if estimator == "identity" else _one_half_over(sample, probs)
        )
    check_probabilities(probs)
    uniform = uniform_like(probs)
    relaxation = RELAXED[estimator]
    bits = (uniform < probs).to(probs.dtype) if hard else None
    relaxed = relaxed_sample(probs, uniform, relaxation, temperature or relaxation.temperature)
    return relaxed if bits is None else _straight_through(bits, relaxed)


def open_probability(
    probs: Tensor,
    estimator: Estimator = "probability",
    *,
    temperature: float | None = None,
    hard: bool = False,
) -> Tensor:
    r"""Probability that a gate's sample is not 0, whose sum is the usual sparsity penalty.

    That is `probs` for samples that are 0 or 1, and :math:`F(Q(p) - \tau x_0)` for ``hard_concrete`` and
    ``gaussian``, where :math:`F` is the distribution function of their noise and the relaxed sample is 0 up
    to :math:`x_0` (Louizos et al., section 2.2; Yamada et al.). A ``concrete`` sample is never 0: for it this
    is `probs` too, the probability of exceeding one half.

    Args:
        probs: Probabilities in [0, 1], of any shape and real floating dtype.
        estimator: As in `bernoulli_sample`.
        temperature: As in `bernoulli_sample`.
        hard: As in `bernoulli_sample`.

    Returns:
        Probabilities with the shape of `probs`, differentiable.

    Raises:
        ValueError: If the arguments after `probs` are not those of a `bernoulli_sample`.

    Example:
        >>> open_probability(torch.tensor([0.1, 0.5, 0.9]), "hard_concrete")
        tensor([0.3547, 0.8318, 0.9780])
    """
    check_estimator(estimator, temperature, hard)
    relaxation = RELAXED.get(estimator)
    if relaxation is None or relaxation.zero is None or hard:
        return probs
    threshold = (temperature or relaxation.temperature) * relaxation.zero
    location = relaxation.quantile(probs.to(at_least_float32(probs.dtype)))
    return relaxation.cdf(location - threshold).to(probs.dtype)
