"""Layers of every kind that may be masked, with inputs."""

import pytest
import torch
from torch import nn

from lightning_fl_ext.gates.masked import MaskedModule

WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


class Shared(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).relu())


SEQUENCE = (3, 6, 8)


LAYERS = {
    "linear": (lambda: nn.Linear(8, 4), SEQUENCE),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), SEQUENCE),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(6, 4, 3), SEQUENCE),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 4, 3), (2, 2, 4, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
    "layer_norm": (lambda: nn.LayerNorm(8), SEQUENCE),
    "batch_norm": (lambda: nn.BatchNorm1d(6), SEQUENCE),
    "group_norm": (lambda: nn.GroupNorm(2, 6), SEQUENCE),
    "embedding": (lambda: nn.Embedding(7, 5), "tokens"),
    "lstm": (lambda: nn.LSTM(8, 4, num_layers=2, bidirectional=True, batch_first=True), SEQUENCE),
    "gru": (lambda: nn.GRU(8, 4, batch_first=True), SEQUENCE),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), "query key value"),
    "transformer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), SEQUENCE),
    "tied": (Tied, "tokens"),
    "shared": (Shared, SEQUENCE),
    "nested": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 2)),
        (4, 1, 5, 5),
    ),
}


def build(name, **options):
    """A masked module, the plain module it was made from, and inputs."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    masked = MaskedModule(make(), **options)
    plain = make()
    plain.load_state_dict(masked.module.state_dict())
    generator = torch.Generator().manual_seed(1)
    if shape == "tokens":
        inputs = (torch.randint(0, 7, (3, 6), generator=generator),)
    elif shape == "query key value":
        inputs = tuple(torch.randn(SEQUENCE, generator=generator) for _ in range(3))
    else:
        inputs = (torch.randn(shape, generator=generator),)
    return masked, plain, inputs


def output_of(module, inputs):
    output = module(*inputs)
    return output[0] if isinstance(output, tuple) else output


def loss_of(output):
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output).sin()).sum()
