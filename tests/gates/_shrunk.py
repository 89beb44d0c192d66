"""Gates that are open where a test says so, and what a shrunk module is compared with."""

import copy

import torch
from torch import nn

from lightning_fl_ext.gates import StochasticGateModule, shrink


def gate(count, dim=-1, open_=None, seed=0, **options):
    """Gates that are open at `open_`; every other one, by default."""
    made = StochasticGateModule(count, dim=dim, **options)
    total = made.logits.numel()
    flags = torch.arange(total) % 2 == 0 if open_ is None else torch.zeros(total).bool()
    if open_ is not None:
        flags[open_] = True
    made.logits.data = torch.where(flags, 2.0, -2.0).reshape(made.logits.shape)
    return made


def settled(module, seed=0):
    """BatchNorms with statistics as after a fit, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in filter(lambda t: t is not None, (part.running_mean, part.weight, part.bias)):
                tensor.data = torch.randn(tensor.shape, generator=generator)
            part.running_var.data = torch.rand(part.num_features, generator=generator) + 0.5
    return module


def thresholded(module, *inputs):
    gated = copy.deepcopy(module).eval()
    for part in gated.modules():
        if isinstance(part, StochasticGateModule):
            part.evaluation = "threshold"
    with torch.no_grad():
        return gated(*inputs)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def check(module, *inputs, **options):
    """Shrink, and compare on another input than the example."""
    small = shrink(module, tuple(inputs), **options)
    assert not any(isinstance(part, StochasticGateModule) for part in small.modules())
    others = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in inputs)
    expected = thresholded(module, *others)
    with torch.no_grad():
        got = small.eval()(*others)
    scale = max(1.0, expected.abs().max().item())
    assert torch.allclose(got, expected, rtol=0, atol=2e-6 * scale)
    return small


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


IMAGES = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self, branch, after=None):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.branch = branch
        self.after = after or nn.Identity()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x)
        x = self.after(x + self.branch(x).relu_())
        return self.head(x.mean((2, 3)))
