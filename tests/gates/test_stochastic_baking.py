"""Gates that several inputs share, and gates that become plain modules."""

import pytest
import torch
from torch import nn

from lightning_fl_ext import StochasticGateModule


def test_inputs_of_a_group_open_and_close_together():
    gate = StochasticGateModule(3, init_prob=0.5, groups=[2, 0, 0, 1, 2])
    torch.manual_seed(0)
    drawn = gate(torch.ones(50, 5))
    torch.manual_seed(0)
    alone = StochasticGateModule(3, init_prob=0.5)(torch.ones(50, 3))
    assert torch.equal(drawn, alone[:, [2, 0, 0, 1, 2]])
    drawn.sum().backward()
    assert gate.logits.grad.shape == (3,)
    assert gate.expected_open().item() == pytest.approx(1.5)
    assert "groups" not in gate.state_dict()


def test_groups_may_have_the_shape_of_several_dimensions():
    gate = StochasticGateModule(2, groups=torch.tensor([[0, 1, 1], [1, 0, 0]]), evaluation="threshold").eval()
    gate.logits.data = torch.tensor([1.0, -1.0])
    assert gate(torch.ones(4, 2, 3))[3].tolist() == [[1, 0, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match=r"shape of the gates: \(2, 3\)"):
        gate(torch.ones(4, 3, 2))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0.5, 1.0], "whole numbers"),
        ([], "whole numbers"),
        ([0, 1, 3], "every gate from 0 to 2"),
        ([0, 1], "every"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        StochasticGateModule(3, groups=groups)
    with pytest.raises(ValueError, match="`num_gates` to be a number"):
        StochasticGateModule((3,) * 2, groups=[0, 1, 2])


def test_a_gater_decides_over_groups():
    gate = StochasticGateModule(2, gater=nn.Linear(4, 2), groups=[0, 0, 1, 1])
    out = gate(torch.ones(6, 4))
    assert torch.equal(out[:, 0], out[:, 1])


@pytest.mark.parametrize("dim", [-1, 1, 2, -3])
@pytest.mark.parametrize("rule", ["threshold", "mean"])
def test_baked_gates_do_what_the_layer_does_in_evaluation(dim, rule):
    x = torch.randn(2, 5, 5, 5)
    gate = StochasticGateModule(5, dim=dim, evaluation=rule).eval()
    gate.logits.data = torch.linspace(-2, 2.5, 5)
    baked = gate.bake(rule)
    assert torch.equal(baked(x), gate(x))
    assert baked(x.bfloat16()).dtype == torch.bfloat16
    assert type(baked).__module__.startswith("torch.")
    assert list(baked.parameters()) == []


@pytest.mark.parametrize("dim", [-1, 2, -2])
def test_gates_over_several_dimensions_are_baked(dim):
    x = torch.randn(2, 3, 3, 3)
    gate = StochasticGateModule((3, 3), dim=dim, evaluation="mean").eval()
    gate.logits.data = torch.randn(3, 3)
    assert torch.allclose(gate.bake("mean")(x), gate(x))


def test_one_gate_for_everything_and_gates_that_are_all_open_are_baked():
    gate = StochasticGateModule(())
    assert isinstance(gate.bake(), nn.Identity)
    gate.logits.data.fill_(-1)
    assert torch.equal(gate.bake()(torch.ones(2, 3)), torch.zeros(2, 3))


def test_a_baked_sample_is_one_draw_for_all_examples():
    gate = StochasticGateModule(64, init_prob=0.5)
    torch.manual_seed(3)
    baked = gate.bake("sample")
    out = baked(torch.ones(4, 64))
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out[0], out[3])
    torch.manual_seed(3)
    assert torch.equal(out[0], torch.bernoulli(gate.probs))


def test_what_cannot_be_baked_is_refused():
    with pytest.raises(ValueError, match="depend on the input"):
        StochasticGateModule(2, gater=nn.Linear(2, 2)).bake()
    with pytest.raises(ValueError, match="`rule` must be one of mean, threshold, sample"):
        StochasticGateModule(2).bake("open")
