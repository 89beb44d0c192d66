"""Whether gates deserve a Triton kernel on a CUDA device: one beside `torch.compile`, forward and backward.

    python benchmarks/gates_triton.py                       # needs a CUDA device and triton
    TRITON_INTERPRET=1 python benchmarks/gates_triton.py    # no device: whether the kernels are right

The kernels do in one pass what `BernoulliSample` does: draw by Philox, compare, look for values that are no
probabilities; and multiply in the backward pass. All contenders take turns; ratios are medians over the
turns, to `torch.compile`. "unchecked" leaves the values unread, as compiled code does; reading the verdict
has the processor wait for the device. A kernel belongs into the package if its line says clearly more than 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from gates import PlainBernoulli, times_in_turn
from torch import Tensor

from lightning_fl_ext.gates import BernoulliSample

try:
    import triton
    import triton.language as tl
except ImportError:
    raise SystemExit("skipped: triton is not installed") from None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BLOCK = 1024
SIZES = (10_000, 1_000_000, 10_000_000, 100_000_000)


@triton.jit
def sample_kernel(probs, out, invalid, seed, size, BLOCK: tl.constexpr):
    """Write one sample for each probability, and set ``invalid`` if a value is no probability."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    p = tl.load(probs + place, mask=inside, other=0.0)
    tl.store(out + place, tl.where(tl.rand(seed, place) < p, 1.0, 0.0), mask=inside)
    wrong = tl.where((p >= 0.0) & (p <= 1.0), 0, 1)  # NaN compares false
    if tl.max(wrong, axis=0) > 0:
        tl.store(invalid, 1)


@triton.jit
def multiply_kernel(probs, grad, out, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    product = tl.load(probs + place, mask=inside) * tl.load(grad + place, mask=inside)
    tl.store(out + place, product, mask=inside)


class TritonBernoulli(torch.autograd.Function):
    """`BernoulliSample` of contiguous float32 by the kernels above."""

    checks = True

    @classmethod
    def forward(cls, probs: Tensor) -> Tensor:
        out, grid = torch.empty_like(probs), (triton.cdiv(probs.numel(), BLOCK),)
        invalid = torch.zeros((), dtype=torch.int32, device=probs.device)
        seed = int(torch.randint(2**31, ()))
        sample_kernel[grid](probs, out, invalid, seed, probs.numel(), BLOCK=BLOCK)
        if cls.checks and invalid.item():
            raise ValueError("`probs` must lie in [0, 1]")
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (probs,) = ctx.saved_tensors
        grad, out = grad_output.contiguous(), torch.empty_like(probs)
        multiply_kernel[(triton.cdiv(probs.numel(), BLOCK),)](probs, grad, out, probs.numel(), BLOCK=BLOCK)
        return out


class UncheckedTriton(TritonBernoulli):
    """The same without a look at the verdict, hence without waiting for the device."""

    checks = False


def check(device: str) -> None:
    """Compare the kernels with the formulas, at sizes around a block's."""
    torch.manual_seed(0)
    for size in (1, BLOCK - 1, BLOCK, 3 * BLOCK + 5, 200_000):
        probs = torch.rand(size, device=device, requires_grad=True)
        grad = torch.randn(size, device=device)
        sample = TritonBernoulli.apply(probs)
        (found,) = torch.autograd.grad(sample, probs, grad)
        assert torch.equal(found, probs.detach() * grad), "the backward pass"
        assert bool(((sample == 0) | (sample == 1)).all()), "samples are 0 or 1"
        if size == 200_000:  # five standard deviations are 0.0046
            assert abs(float((sample - probs).detach().mean())) < 0.0046, (
                "samples have the probabilities' mean"
            )
            assert not torch.equal(TritonBernoulli.apply(probs), sample), "samples are drawn anew"
    ends = torch.tensor([0.0, 1.0] * 5000, device=device)
    assert torch.equal(TritonBernoulli.apply(ends), ends), "0 never opens, 1 always does"
    for bad in (float("nan"), -0.1, 1.1):
        try:
            TritonBernoulli.apply(torch.tensor([0.5, bad], device=device))
        except ValueError:
            continue
        raise AssertionError(f"{bad} is no probability")
    print(f"the kernels are right on {device}" + " (interpreted)" * INTERPRETED)


def speed(size: int, repeats: int) -> None:
    """Print the time of each contender at one size."""
    learned = torch.rand(size, device="cuda", requires_grad=True)
    grad = torch.rand(size, device="cuda")
    compiled = torch.compile(BernoulliSample.apply, fullgraph=True)

    def forward_backward(sample: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(sample(learned), learned, grad)

    both = {
        "torch.compile": forward_backward(compiled),
        "Triton, unchecked": forward_backward(UncheckedTriton.apply),
        "Triton": forward_backward(TritonBernoulli.apply),
        "BernoulliSample": forward_backward(BernoulliSample.apply),
        "plain Function": forward_backward(PlainBernoulli.apply),
    }
    for function in both.values():
        function()
    times = times_in_turn(both, repeats, "cuda")
    print(f"\nforward and backward, {size:.0e} float32 gates, cuda")
    for name, seconds in times.items():
        pairs = zip(times["torch.compile"], seconds, strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        print(f"  {name:<18}{median(seconds) * 1e6:10.1f} µs {ratio:7.2f} x as fast as torch.compile")


def main() -> None:
    if not (INTERPRETED or torch.cuda.is_available()):
        print("skipped: no CUDA device; TRITON_INTERPRET=1 checks the kernels without one")
        return
    check("cpu" if INTERPRETED else "cuda")
    if not INTERPRETED:
        for size in SIZES:
            speed(size, repeats=50)


if __name__ == "__main__":
    main()
