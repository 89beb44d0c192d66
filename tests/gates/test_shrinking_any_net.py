"""Any small net gives the outputs of the thresholded one."""

import torch
from _shrunk import check, gate, parameters, settled
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


@st.composite
def nets(draw):
    """Random stacks of convolutions with gates anywhere, and a head behind flattened or pooled channels."""
    layers, width = [], 2
    activations = [nn.ReLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.PReLU, nn.Hardsigmoid]
    for _ in range(draw(st.integers(1, 4))):
        new = draw(st.integers(1, 5))
        bias, padding = draw(st.booleans()), draw(st.sampled_from([0, 1]))
        layers.append(nn.Conv2d(width, new, 3, padding=padding, bias=bias))
        width = new
        extras = draw(
            st.lists(st.sampled_from(["norm", "gate", "act", "pool", "depthwise", "residual"]), max_size=4)
        )
        for extra in extras:
            if extra == "norm":
                layers.append(nn.BatchNorm2d(width, affine=draw(st.booleans())))
            elif extra == "gate":
                open_ = draw(st.lists(st.integers(0, width - 1), max_size=width))
                layers.append(gate(width, draw(st.sampled_from([1, -3])), open_))
            elif extra == "act":
                layers.append(draw(st.sampled_from(activations))())
            elif extra == "pool":
                layers.append(nn.AvgPool2d(3, stride=1, padding=1))
            elif extra == "depthwise":
                layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias))
            else:
                inner = nn.Sequential(nn.Conv2d(width, width, 1), gate(width, 1), nn.ReLU())
                layers.append(Sum(inner))
    head = draw(st.sampled_from(["flat", "pooled"]))
    layers.append(nn.AdaptiveAvgPool2d(2 if head == "flat" else 1))
    layers += [nn.Flatten(), nn.Linear(width * (4 if head == "flat" else 1), 6), gate(6, -1), nn.Linear(6, 2)]
    return settled(nn.Sequential(*layers), draw(st.integers(0, 9)))


class Sum(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


@given(net=nets())
@settings(max_examples=60)
def test_any_small_net_gives_the_outputs_of_the_thresholded_one(net):
    images = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    small = check(net, images)
    assert parameters(small) < parameters(net)
