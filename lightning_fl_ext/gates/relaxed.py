r"""Relaxed samples: :math:`z = h((Q(p) - Q(u)) / \tau)`, and their derivative by the probability.

Left to autograd, the formula keeps some ten tensors for the derivative, and to make them takes longer than to
compute them: each new one of 40 MB is 10 000 pages that the system has to hand out. Here two are made and
kept: z, from which :math:`h'(x)` follows, and :math:`Q'(p)`. The third is :math:`dz/dp = h'(x) Q'(p) / \tau`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from lightning_fl_ext.gates.fused import has_values

_ROOT_TWO = math.sqrt(2)

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Relaxation:
    """A family of relaxed samples.

    Attributes:
        quantile: Q, of the noise.
        cdf: Its inverse.
        squash: h.
        quantile_: Q, in place.
        squash_: h, in place.
        rate: Q'(p), the inverse of the noise's density, from p and Q(p), in a given tensor or a new one.
        slope: h'(x), from h(x).
        temperature: tau, as in the source.
        zero: h is 0 up to here; None: h is nowhere 0.
    """

    quantile: Function
    cdf: Function
    squash: Function
    quantile_: Function
    squash_: Function
    rate: Callable[..., Tensor]
    slope: Function
    temperature: float
    zero: float | None


def _logit(probs: Tensor) -> Tensor:
    return torch.logit(probs, eps=torch.finfo(probs.dtype).eps)


def _logit_(probs: Tensor) -> Tensor:
    return probs.logit_(eps=torch.finfo(probs.dtype).eps)


def _probit(probs: Tensor) -> Tensor:
    eps = torch.finfo(probs.dtype).eps
    return cast(Tensor, torch.special.ndtri(probs.clamp(eps, 1 - eps)))


def _probit_(probs: Tensor) -> Tensor:
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp_(eps, 1 - eps).mul_(2).sub_(1).erfinv_().mul_(_ROOT_TWO)


def _stretched_sigmoid(x: Tensor) -> Tensor:
    return (1.2 * torch.sigmoid(x) - 0.1).clamp(0, 1)


def _stretched_sigmoid_(x: Tensor) -> Tensor:
    return x.sigmoid_().mul_(1.2).sub_(0.1).clamp_(0, 1)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (x + 0.5).clamp(0, 1)


def _hard_sigmoid_(x: Tensor) -> Tensor:
    return x.add_(0.5).clamp_(0, 1)


# In place on tensors of their own, these can be differentiated: what autograd keeps is not written to again.


def _logistic_rate(probs: Tensor, quantile: Tensor, out: Tensor | None = None) -> Tensor:
    return _spread(probs, out).reciprocal_()


def _normal_rate(probs: Tensor, quantile: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.mul(quantile, quantile, out=out).mul_(0.5).add_(0.5 * math.log(2 * math.pi)).exp_()


def _stretched_slope(z: Tensor) -> Tensor:
    # (z + 0.1) (1.1 - z) / 1.2, and 0 where z is at an end, or nearer to it than the sum can tell
    return nn.functional.threshold(_spread(z).add_(0.11), 0.11, 0.0, inplace=True).div_(1.2)


def _hard_slope(z: Tensor) -> Tensor:
    return _spread(z).sign_()


def _spread(x: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.addcmul(x, x, x, value=-1, out=out)  # x (1 - x)


RELAXED = {
    "concrete": Relaxation(
        *(_logit, torch.sigmoid, torch.sigmoid, _logit_, torch.sigmoid_),
        *(_logistic_rate, _spread, 0.3, None),
    ),
    "hard_concrete": Relaxation(
        *(_logit, torch.sigmoid, _stretched_sigmoid, _logit_, _stretched_sigmoid_),
        *(_logistic_rate, _stretched_slope, 2 / 3, math.log(0.1 / 1.1)),
    ),
    # The source writes clamp(mu + 1/2 + sigma * noise, 0, 1), here tau = 1 / sigma and mu = sigma * Q(p).
    "gaussian": Relaxation(
        *(_probit, torch.special.ndtr, _hard_sigmoid, _probit_, _hard_sigmoid_),
        *(_normal_rate, _hard_slope, 2.0, -0.5),
    ),
}


def relaxed_sample(probs: Tensor, uniform: Tensor, relaxation: Relaxation, temperature: float) -> Tensor:
    """Relax what uniform numbers decide.

    Args:
        probs: Probabilities, checked.
        uniform: Uniform numbers of the shape of `probs`, of at least float32. They may be overwritten.
        relaxation: The family.
        temperature: tau.

    Returns:
        The sample, of the dtype of `probs`.
    """
    if probs.dtype == uniform.dtype and only_backward(probs):
        return cast(Tensor, _InPlace.apply(probs, uniform, relaxation, temperature))  # type: ignore[no-untyped-call]
    noisy = relaxation.quantile(probs.to(uniform.dtype)) - relaxation.quantile(uniform)
    return relaxation.squash(noisy / temperature).to(probs.dtype)


def only_backward(tensor: Tensor) -> bool:
    """Whether it is an ordinary tensor on the processor, and no forward-mode derivative is on its way."""
    return has_values(tensor) and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]


class _InPlace(torch.autograd.Function):
    """The sample, and its derivative, which can be differentiated once more."""

    @staticmethod
    def forward(
        ctx: Any, probs: Tensor, uniform: Tensor, relaxation: Relaxation, temperature: float
    ) -> Tensor:
        """Compute the sample where the uniform numbers were, and the rate where their quantiles were."""
        quantile = relaxation.quantile_(probs.clone())
        noisy = torch.sub(quantile, relaxation.quantile_(uniform), out=uniform).div_(temperature)
        sample = relaxation.squash_(noisy)
        ctx.mark_dirty(uniform)  # which is the sample now
        rate = relaxation.rate(probs, quantile, out=quantile) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(probs, sample, rate)
        ctx.relaxation, ctx.temperature = relaxation, temperature
        return sample

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        """Multiply by the derivative of the sample."""
        probs, sample, rate = ctx.saved_tensors
        relaxation: Relaxation = ctx.relaxation
        eps = torch.finfo(probs.dtype).eps
        again = torch.is_grad_enabled()
        if again:
            within = probs.clamp(eps, 1 - eps)
            rate = relaxation.rate(within, relaxation.quantile(within))
        derivative = relaxation.slope(sample).mul_(rate).div_(ctx.temperature)
        low, high = probs.detach().aminmax()
        if low < eps or high > 1 - eps:  # There Q does not change with p.
            derivative.masked_fill_((probs < eps).logical_or_(probs > 1 - eps), 0.0)
        if again or not has_values(grad_output):
            return grad_output * derivative, None, None, None
        return derivative.mul_(grad_output), None, None, None
