"""What cannot be shrunk is refused by name, and never shrunk to something else."""

import pytest
from _shrunk import ROWS, Lambda, check, gate
from torch import nn

from lightning_fl_ext.gates import MaskedModule, ShrinkError, StochasticGateModule, shrink


def test_a_forward_that_depends_on_a_width_is_refused():
    scaled = Lambda(lambda x: x / x.shape[1])
    net = nn.Sequential(nn.Linear(6, 8), gate(8), scaled, nn.Linear(8, 2))
    with pytest.raises(ShrinkError, match="does not give the same outputs: they differ by"):
        shrink(net, ROWS)
    assert shrink(net, ROWS, keep="*")[0].out_features == 8


def test_views_that_are_changed_in_place_are_not_lost_sight_of():
    def forward(x):
        x[:, 0].add_(1.0)
        return x

    net = nn.Sequential(nn.Linear(6, 8), gate(8, open_=[3]), Lambda(forward), nn.Linear(8, 2))
    assert check(net, ROWS)[3].in_features == 8

    def through_a_view(x):
        flat = x.flatten()
        flat.add_(1.0)
        return x

    net[2] = Lambda(through_a_view)
    assert check(net, ROWS)[3].in_features == 8


@pytest.mark.parametrize(("module", "message"), [
    (nn.Linear(6, 2), "holds no `StochasticGateModule`"),
    (nn.Sequential(StochasticGateModule(6, gater=nn.Linear(6, 6))), "depend on the input: 0"),
    (gate(6), "become plain by `bake"),
    (nn.Sequential(gate(6), MaskedModule(nn.Linear(6, 2))), "sees no weights behind masks: 1"),
    (nn.Sequential(gate(5)), "fails on the example: ValueError"),
    (nn.Sequential(gate(6), Lambda(lambda x: {1})), "must return tensors"),
], ids=["no gates", "gater", "alone", "masks", "example", "output"])  # fmt: skip
def test_what_cannot_be_shrunk_is_refused(module, message):
    with pytest.raises(ShrinkError, match=message):
        shrink(module, ROWS)


def test_a_gate_that_the_forward_does_not_call_is_refused():
    net = nn.Linear(6, 2)
    net.gate = gate(2)
    with pytest.raises(ShrinkError, match="does not call the gates gate"):
        shrink(net, ROWS)
