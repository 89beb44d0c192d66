"""Samples of Bernoulli variables, and the surrogate gradient that lets their probabilities be learned."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lightning_fl_ext.gates.fused import fused_sample

__all__ = ["BernoulliSample"]


def check_probabilities(probs: Tensor) -> None:
    """Raise unless `probs` is a real floating tensor whose every value lies in [0, 1].

    The dtype is checked always. The values are checked when there are values to look at: not while
    ``torch.compile`` or ``torch.export`` trace, not under ``torch.vmap``, not for meta and fake
    tensors. On an accelerator the check waits for the device.

    Raises:
        TypeError: If `probs` is not a tensor, or is integer, bool or complex.
        ValueError: If a value is NaN or outside [0, 1].
    """
    if not isinstance(probs, Tensor):
        raise TypeError(f"`probs` must be a tensor of probabilities. Got {type(probs).__name__}.")
    if not probs.is_floating_point():
        raise TypeError(
            f"`probs` must have a real floating dtype. Got {probs.dtype}. Convert it by `probs.float()`."
        )
    if torch.compiler.is_compiling():
        return
    try:
        low, high = (bound.item() for bound in probs.detach().aminmax())
    except RuntimeError:  # An empty, vmapped, meta or fake tensor has no values that Python could read.
        return
    if not (low >= 0 and high <= 1):  # Written so that NaN fails.
        remedy = (
            "NaN came in with the logits or the weights: look for a loss or a step that was not finite."
            if low != low
            else "Pass probabilities, not logits: `torch.sigmoid(logits)`."
        )
        raise ValueError(
            f"`probs` must lie in [0, 1]. Got values from {low} to {high}, shape {tuple(probs.shape)}."
            f" {remedy}"
        )


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The floating dtype to compute in: float32 in place of half precisions."""
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def uniform_like(probs: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of the shape of `probs`, in at least float32.

    A bfloat16 uniform number has 8 bits, and would open a gate of probability 0.001 three times too
    often. The dtype is spelled out since a Trainer with ``precision="bf16-true"`` lowers the default.
    """
    return torch.rand(probs.shape, dtype=at_least_float32(probs.dtype), device=probs.device)


def sample_gates(probs: Tensor) -> Tensor:
    """Draw one sample for each probability: 0s and 1s of its dtype, without a gradient.

    Raises:
        TypeError: See `check_probabilities`.
        ValueError: See `check_probabilities`.
    """
    if isinstance(probs, Tensor) and (sample := fused_sample(probs)) is not None:
        return sample
    check_probabilities(probs)
    return (uniform_like(probs) < probs).to(probs.dtype)


class BernoulliSample(torch.autograd.Function):
    r"""Sample :math:`b_i \sim \mathrm{Bernoulli}(p_i)`; the gradient passes back multiplied by :math:`p_i`.

    Forward, ``BernoulliSample.apply(bernoulli_probs)`` gives 0s and 1s of the shape, dtype and device of its
    input. For contiguous float32 and float64 input on CPU they are those of :func:`torch.bernoulli` for the
    same seed, to the bit, in less time. Backward, the gradient with respect to the probabilities is
    ``bernoulli_probs * grad_output``, the rule of the supermask code of Zhou et al., "Deconstructing
    Lottery Tickets", NeurIPS 2019 (arXiv:1905.01067), and of FedPM, Isik et al., ICLR 2023
    (arXiv:2209.15328).

    This gradient is biased towards 0: its expectation is :math:`p_i` times that of the straight-through
    estimator, so gates that are nearly closed learn slowly. In exchange it varies least. See
    :func:`~lightning_fl_ext.gates.bernoulli_sample` for the other estimators.

    The backward formula is itself differentiable, as a function of the probabilities and of the
    incoming gradient: differentiated once more, ``p * g`` contributes ``g`` to the probabilities and ``p``
    to the gradient. There is no forward-mode derivative; use the estimator ``"identity"`` for one.

    Raises:
        TypeError: If the input is not a tensor, or is integer, bool or complex.
        ValueError: If a value is NaN or outside [0, 1]. Under ``torch.compile``, ``torch.export`` and
            ``torch.vmap``, and for meta and fake tensors, values cannot be looked at and are not checked.

    Example:
        >>> probs = torch.tensor([0.0, 0.2, 0.8, 1.0], requires_grad=True)
        >>> _ = torch.manual_seed(0)
        >>> sample = BernoulliSample.apply(probs)
        >>> _ = torch.manual_seed(0)
        >>> torch.equal(sample, torch.bernoulli(probs))
        True
        >>> sample.backward(torch.tensor([10.0, 10.0, 10.0, 10.0]))
        >>> probs.grad
        tensor([ 0.,  2.,  8., 10.])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(bernoulli_probs: Tensor) -> Tensor:
        """Draw one sample for each probability."""
        return sample_gates(bernoulli_probs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the probabilities for the backward pass."""
        (bernoulli_probs,) = inputs
        ctx.save_for_backward(bernoulli_probs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        """Multiply the incoming gradient by the probabilities."""
        (bernoulli_probs,) = ctx.saved_tensors
        return cast(Tensor, bernoulli_probs * grad_output)
