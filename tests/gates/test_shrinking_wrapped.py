"""Modules that run otherwise than they are written, return more than a tensor, or are complex."""

from dataclasses import dataclass

import pytest
import torch
from _shrunk import ROWS, Lambda, check, gate, parameters, settled, thresholded
from torch import Tensor, nn

from lightning_fl_ext.gates import ShrinkError, gate_costs, gate_modules, shrink


def layers():
    return nn.Sequential(nn.Linear(6, 8), gate(8), nn.ReLU(), nn.Linear(8, 3))


def test_a_compiled_module_within_is_followed_as_it_is_written():
    net = nn.Sequential(torch.compile(layers(), backend="eager"), nn.Linear(3, 2)).eval()
    written = nn.Sequential(net[0]._orig_mod, net[1])
    net(ROWS)
    small = shrink(net, ROWS)
    assert gate_costs(net, ROWS) == {"0._orig_mod.1": 10.0}
    assert small[0]._orig_mod[3].in_features == 4
    assert type(small[0]) is type(net[0])  # and stays compiled
    torch.testing.assert_close(small(ROWS * 2), thresholded(written, ROWS * 2))
    torch._dynamo.reset()


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class WithHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(6, 8), gate(8), nn.Linear(8, 2)

    def forward(self, x):
        hidden = self.gate(self.body(x))
        return Output(self.head(hidden), hidden)


def test_what_a_dataclass_returns_stays_as_it_is():
    net = WithHidden()
    small, expected = shrink(net, ROWS), thresholded(net, ROWS)
    got = small.eval()(ROWS)
    assert small.body.out_features == 4  # zeros take the place of the others
    torch.testing.assert_close((got.logits, got.hidden), (expected.logits, expected.hidden))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [
    lambda: torch.jit.script(nn.ReLU()),
    lambda: Lambda(torch.func.vmap(torch.relu)),
], ids=["script", "vmap"])  # fmt: skip
def test_what_cannot_be_followed_is_refused(make):
    net = nn.Sequential(nn.Linear(6, 8), gate(8), make(), nn.Linear(8, 2))
    with pytest.raises(ShrinkError, match="cannot be followed"):
        shrink(net, ROWS)
    assert shrink(net, ROWS, keep="*")[0].out_features == 8


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0])


class OneOfOne(nn.Linear):
    def forward(self, x):
        return (super().forward(x),)


@pytest.mark.parametrize(("layer", "left"), [
    (nn.LSTM(6, 6, batch_first=True), 336),  # its last state is computed
    (OneOfOne(6, 6), 0),
], ids=["lstm", "one"])  # fmt: skip
def test_a_skipped_module_that_returns_a_tuple_goes_if_nothing_else_is_in_it(layer, left):
    net = Recurrent(layer)
    gate_modules(net, "layer", closed="skip")["layer"].logits.data.fill_(-2.0)
    small = check(net, ROWS)
    assert parameters(small.layer) == left


def test_a_complex_net_is_compared_with_its_imaginary_parts():
    into = nn.Linear(6, 8, dtype=torch.cfloat)
    net = nn.Sequential(into, gate(8), nn.Linear(8, 2, dtype=torch.cfloat))
    rows = ROWS + 1j * ROWS.flip(0)
    small = shrink(net, rows)
    assert small[0].out_features == 4
    torch.testing.assert_close(small(rows * 1j), thresholded(net, rows * 1j))
    imaginary = nn.Sequential(
        *net[:2], Lambda(lambda x: x / x.shape[1]), net[2], Lambda(lambda x: 1j * x.imag)
    )
    with pytest.raises(ShrinkError, match="they differ by"):
        shrink(imaginary, rows)


def test_what_a_norm_makes_of_zero_goes_into_a_complex_bias():
    norm = settled(nn.Sequential(nn.BatchNorm1d(8)))
    cast = Lambda(lambda x: x.to(torch.cdouble if x.dtype == torch.double else torch.cfloat))
    net = nn.Sequential(nn.Linear(6, 8), gate(8), norm, cast, nn.Linear(8, 2, dtype=torch.cfloat))
    small = shrink(net, ROWS)
    assert small[4].in_features == 4
    torch.testing.assert_close(small.eval()(ROWS * 2), thresholded(net, ROWS * 2))
