"""What masks cost on one thread: the codes, and the forward and backward of a `MaskedModule`.

python benchmarks/mask_speed.py [parameters]    # 10 million by default; about a minute
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mask_federation import make_net
from torch import Tensor, nn

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.gates import MaskedModule
from lightning_fl_ext.wire.codes import (
    CountedRound,
    MaskKey,
    decode_change,
    decode_mask,
    decode_theta,
    encode_counts_change,
    encode_mask,
    encode_relay,
    encode_sum_change,
    encode_theta,
    sample_mask,
    to_fixed_point,
)


class Mask(torch.autograd.Function):
    """b ~ Bernoulli(p), and p times the gradient for p: one class per layer, written from the formula."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return torch.bernoulli(p)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return p * gradient


class MaskedLinear(nn.Linear):
    """Its weights under a mask."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * Mask.apply(torch.sigmoid(self.scores)))


class MaskedConv2d(nn.Conv2d):
    """Its weights under a mask."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * Mask.apply(torch.sigmoid(self.scores)), None)


def one_class_per_layer(net: nn.Module) -> nn.Module:
    net = deepcopy(net)
    for layer in net:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.__class__ = MaskedLinear if isinstance(layer, nn.Linear) else MaskedConv2d
            layer.weight.requires_grad_(False)
            layer.scores = nn.Parameter(torch.randn(layer.weight.shape))
    return net


def best_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of processor time of the fastest call: other programs on the machine hardly count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def print_speed(size: int) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    logits = np.log(1 / rng.uniform(0.01, 0.99, size) - 1)
    public = to_fixed_point(1 / (1 + np.exp(logits)))
    theta = to_fixed_point(1 / (1 + np.exp(logits + rng.normal(0, 0.3, size))))
    key = MaskKey(0, 1, "speed", "client")
    print(f"\ncodes, {size} parameters, one thread, million parameters per second: encode, decode")
    for code in ("packed", "dithered", "random"):
        payload = encode_mask(theta, public, key, code)
        write = best_of(lambda code=code: encode_mask(theta, public, key, code))
        read = best_of(lambda payload=payload: decode_mask(payload, public, key))
        print(
            f"{code:10}{size / write / 1e6:8.1f}{size / read / 1e6:8.1f}   {8 * len(payload) / size:.4f} bits"
        )
    counts = ThetaCounts(rng.integers(0, 11, size).astype(np.uint16), 10)
    payload = encode_theta(counts, key)
    write, read = (
        best_of(lambda: encode_theta(counts, key)),
        best_of(lambda: decode_theta(payload, size, key)),
    )
    print(f"{'θ':10}{size / write / 1e6:8.1f}{size / read / 1e6:8.1f}   {8 * len(payload) / size:.4f} bits")
    print_changes(counts, rng)

    print("\nforward and backward, milliseconds:")
    stack = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(50)))
    for name, plain, x in [
        ("conv net, batch 32", make_net(), torch.randn(32, 1, 8, 8)),
        ("50 × Linear(64), batch 32", stack, torch.randn(32, 64)),
    ]:
        nets = {
            "plain": plain,
            "class per layer": one_class_per_layer(plain),
            "MaskedModule": MaskedModule(deepcopy(plain)),
            "MaskedModule, flat": MaskedModule(deepcopy(plain), flat=True),
        }
        for label, net in nets.items():
            seconds = best_of(lambda net=net, x=x: net(x).sum().backward(), 20)
            print(f"{name:28} {label:20}{1e3 * seconds:8.2f}")


def print_changes(base: ThetaCounts, rng: np.random.Generator) -> None:
    """θ for whoever holds the one before: ten clients, each of which moves by 0.3 in log odds."""
    size, key = base.counts.size, MaskKey(0, 2, "speed")
    counted = CountedRound(1, tuple(f"site-{k}" for k in range(10)))
    probs = base.probabilities()
    logits, opened, masks = np.log(probs / (1 - probs)), np.zeros(size, np.uint16), []
    for sender in counted.keys(key):
        theta = to_fixed_point(1 / (1 + np.exp(-logits - rng.normal(0, 0.3, size))))
        masks.append(encode_mask(theta, base.fixed_point(), sender))
        opened += sample_mask(theta, sender)
    new = ThetaCounts(opened, 10)
    ways: dict[str, Callable[[], bytes | None]] = {
        "counts": lambda: encode_counts_change(new, base, key),
        "sum": lambda: encode_sum_change(new, base, counted, key),
        "relay": lambda: encode_relay(new, base, counted, masks, key),
    }
    for name, encode in ways.items():
        payload = encode()
        assert payload is not None
        write = best_of(encode, 3)
        read = best_of(lambda payload=payload: decode_change(payload, base, key), 3)
        print(
            f"{name:10}{size / write / 1e6:8.1f}{size / read / 1e6:8.1f}   {8 * len(payload) / size:.4f} bits"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_speed(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
