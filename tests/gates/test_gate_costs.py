"""What a gate costs is what is gone without it."""

import pytest
import torch
from torch import nn

from lightning_fl_ext.gates import ShrinkError, StochasticGateModule, gate_costs, gate_modules


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), StochasticGateModule(8, dim=1),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.ReLU(), StochasticGateModule(16, dim=1),
        nn.Flatten(), nn.Linear(16 * 36, 10),
    )  # fmt: skip


IMAGES = torch.randn(4, 3, 6, 6)


def test_parameters_are_counted_by_hand():
    assert gate_costs(net(), IMAGES) == {"3": 3 * 9 + 1 + 2 + 16 * 9, "6": 8 * 9 + 36 * 10}


def test_multiplications_are_counted_by_hand():
    expected = {"3": 36 * 9 * (3 + 16), "6": 36 * (9 * 8 + 10)}
    assert gate_costs(net(), IMAGES, "multiplications") == expected


def test_an_encoder_layer_that_torch_fuses_is_counted_too():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    gate_modules(encoder, "layers.*.linear1", on="channels")
    tokens = torch.randn(3, 5, 8)
    costs = gate_costs(encoder, tokens, "multiplications")
    assert costs == dict.fromkeys((f"layers.{n}.linear1.stochastic_gate" for n in (0, 1)), 5.0 * (8 + 8))
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_module_stays_as_it_is():
    module = net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gate_costs(module, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_gates_that_save_nothing_cost_one():
    assert gate_costs(nn.Sequential(nn.LayerNorm(6), StochasticGateModule(6)), torch.ones(2, 6)) == {"1": 1.0}


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="`of` must be one of parameters, multiplications"):
        gate_costs(net(), IMAGES, "time")
    with pytest.raises(ShrinkError, match="depend on the input"):
        gate_costs(nn.Sequential(StochasticGateModule(6, gater=nn.Linear(6, 6))), torch.ones(2, 6))
