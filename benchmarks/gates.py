"""What a gate costs, and what its gradient is worth.

``python benchmarks/gates.py`` takes the processor time of the samplers on one thread, forward and backward,
at 1e4 to 1e7 gates, against `torch.bernoulli` and the plain autograd Function over it that `BernoulliSample`
replaces. They take turns; the ratios are the median over the turns, and that of the best times. With numba
(extra ``fast``) the fused loop is compiled beforehand; ``--unfused`` measures without it. ``--device cuda``
takes the time of all that a device does.

``python benchmarks/gates.py --estimators`` measures the bias and the spread of every estimator's gradient.
The loss of 8 gates is a function of 2^8 states, so the true gradient of its expectation is known exactly; so
are the bias and the spread of an estimator whose samples are 0 or 1. The relaxed ones are sampled.

``python benchmarks/gates.py --heads`` compares encoder layers whose heads have gates with those without.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_fl_ext.gates import BernoulliSample, Estimator, bernoulli_sample, fused, gate_modules
from lightning_fl_ext.gates.bernoulli import check_probabilities

RELAXED = ("concrete", "hard_concrete", "gaussian")
NUM_GATES = 8
NUM_SAMPLES = 400_000


class PlainBernoulli(torch.autograd.Function):
    """The formula as one would first write it."""

    @staticmethod
    def forward(probs: Tensor) -> Tensor:
        return torch.bernoulli(probs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return ctx.saved_tensors[0] * grad_output


def now(device: str) -> float:
    """Seconds: of the processor, or, once it has done what it was given, of a CUDA device."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def times_in_turn(
    functions: dict[str, Callable[[], object]], repeats: int, device: str
) -> dict[str, list[float]]:
    """Every processor time of each function, in seconds; they take turns: a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = now(device)
            function()
            times[name].append(now(device) - start)
    return times


def speed(size: int, repeats: int, device: str) -> None:
    probs = torch.rand(size, device=device)
    learned = probs.clone().requires_grad_()
    grad = torch.rand(size, device=device)

    def forward_backward(sample: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(sample(learned), learned, grad)

    forward = {
        "torch.bernoulli": lambda: torch.bernoulli(probs),
        "BernoulliSample": lambda: BernoulliSample.apply(probs),
        "  its value check": lambda: check_probabilities(probs),
    }
    both = {
        "plain Function": forward_backward(PlainBernoulli.apply),
        "BernoulliSample": forward_backward(BernoulliSample.apply),
    }
    for estimator in get_args(Estimator)[1:]:
        both[estimator] = forward_backward(lambda p, name=estimator: bernoulli_sample(p, name))
    for title, functions in (("forward", forward), ("forward and backward", both)):
        print(f"\n{title}, {size:.0e} float32 gates, {device}")
        times = times_in_turn(functions, repeats, device)
        baseline = next(iter(times.values()))
        for name, seconds in times.items():
            turns = median(plain / ours for plain, ours in zip(baseline, seconds, strict=True))
            print(
                f"  {name:<16}{median(seconds) / size * 1e9:7.1f} ns per gate {turns:7.2f} x as fast"
                f" (best times {min(baseline) / min(seconds):.2f} x)"
            )


def heads(repeats: int = 25) -> None:
    """Processor time of encoder layers with gated heads, forward and backward, against those without."""
    for width in (64, 256):
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        plain = nn.TransformerEncoder(layer, 2)
        gated = copy.deepcopy(plain)
        gate_modules(gated, "layers.*.self_attn", on="heads")
        tokens = torch.randn(16, 64, width)
        both = {
            "plain": lambda plain=plain, tokens=tokens: plain(tokens).sum().backward(),
            "gated": lambda gated=gated, tokens=tokens: gated(tokens).sum().backward(),
        }
        times = times_in_turn(both, repeats, "cpu")
        turns = median(ours / theirs for theirs, ours in zip(times["plain"], times["gated"], strict=True))
        print(f"  {width:>4} features, 4 heads: {turns:.2f} x the time")


def losses() -> dict[str, Callable[[Tensor], Tensor]]:
    """Losses of a batch of gates, fixed at random: multilinear, quadratic, and that of a small network."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    linear, pairs, triple = normal(NUM_GATES), normal(NUM_GATES, NUM_GATES).triu(1), normal(NUM_GATES - 2)
    factors, target = normal(NUM_GATES, 4), normal(4)
    hidden, output = normal(NUM_GATES, 16), normal(16, 3)

    def multilinear(z: Tensor) -> Tensor:
        triples = z[:, :-2] * z[:, 1:-1] * z[:, 2:]
        return z @ linear + ((z @ pairs) * z).sum(1) + triples @ triple

    def quadratic(z: Tensor) -> Tensor:
        return (z @ factors - target).square().sum(1)

    def network(z: Tensor) -> Tensor:
        return -(torch.tanh(z @ hidden) @ output).log_softmax(1)[:, 0]

    return {"multilinear": multilinear, "quadratic": quadratic, "tanh network": network}


LOSSES = losses()


def all_states(probs: Tensor) -> tuple[Tensor, Tensor]:
    """The 2^8 states of the gates, and their probabilities, differentiable."""
    states = (torch.arange(2**NUM_GATES)[:, None] >> torch.arange(NUM_GATES) & 1).to(probs.dtype)
    return states, torch.where(states > 0, probs, 1 - probs).prod(1)


def estimates(loss: Callable[[Tensor], Tensor], probs: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Every gradient with respect to `probs` that the estimator can give, and its probability."""
    rows = probs.expand(NUM_SAMPLES if estimator in RELAXED else 1000, NUM_GATES).detach().requires_grad_()
    sample = bernoulli_sample(rows, estimator)
    if estimator in RELAXED:
        (gradients,) = torch.autograd.grad(loss(sample).sum(), rows)
        return gradients, torch.full((NUM_SAMPLES,), 1 / NUM_SAMPLES, dtype=probs.dtype)
    # The factor on the incoming gradient depends on a gate's probability and its state only: look both up.
    (factors,) = torch.autograd.grad(sample.sum(), rows)
    if_open = factors.gather(0, sample.argmax(0, keepdim=True))
    if_closed = factors.gather(0, sample.argmin(0, keepdim=True))
    states, weights = all_states(probs)
    states = states.requires_grad_()
    (incoming,) = torch.autograd.grad(loss(states).sum(), states)
    return torch.where(states > 0, if_open, if_closed) * incoming, weights.detach()


def bias_and_deviation(loss: Callable[[Tensor], Tensor], estimator: Estimator) -> tuple[float, float]:
    """Of the gradient with respect to the logits, relative to the norm of the true one."""
    torch.manual_seed(0)
    logits = torch.linspace(-2, 2, NUM_GATES, dtype=torch.float64).requires_grad_()
    probs = torch.sigmoid(logits)
    states, weights = all_states(probs)
    (exact,) = torch.autograd.grad(weights @ loss(states), logits)
    probs = probs.detach()
    gradients, chances = estimates(loss, probs, estimator)
    gradients = gradients * probs * (1 - probs)  # the slope of the probabilities by the logits
    mean = chances @ gradients
    bias = (mean - exact).norm() / exact.norm()
    deviation = (chances @ (gradients - mean).square().sum(1)).sqrt() / exact.norm()
    return bias.item(), deviation.item()


def estimator_table() -> None:
    print("Gradient with respect to the logits: relative bias / relative standard deviation")
    print(f"  {'estimator':<16}" + "".join(f"{name:>18}" for name in LOSSES))
    for estimator in get_args(Estimator):
        cells = (bias_and_deviation(loss, estimator) for loss in LOSSES.values())
        print(
            f"  {estimator:<16}" + "".join(f"{bias:>10.3f} / {deviation:<5.2f}" for bias, deviation in cells)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="What a gate costs, and what its gradient is worth.")
    parser.add_argument("--unfused", action="store_true", help="measure as without numba")
    parser.add_argument("--estimators", action="store_true", help="measure bias and spread instead of speed")
    parser.add_argument("--heads", action="store_true", help="measure gated heads instead")
    parser.add_argument("--device", default="cpu", help="cpu (the default) or cuda")
    parser.add_argument("--size", type=int, action="append", help="gates, instead of 1e4, 1e6 and 1e7")
    arguments = parser.parse_args()
    if arguments.estimators:
        estimator_table()
        return
    if arguments.heads:
        torch.set_num_threads(1)
        heads()
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device: nothing is measured")
        return
    fused.COMPILE_AFTER = 2**62 if arguments.unfused else 0
    print("fused loop:", "no" if arguments.unfused or fused.compiled_loop() is None else "yes")
    torch.set_num_threads(1)
    for size in arguments.size or (10_000, 1_000_000, 10_000_000):
        speed(size, 300 if size < 1e6 else 30 if size < 1e7 else 7, arguments.device)


if __name__ == "__main__":
    main()
