"""Gates in torch's encoders, which compute themselves past their submodules where nothing stops them."""

import copy

import pytest
import torch
from torch import nn

from lightning_fl_ext.gates import StochasticGateModule, gate_modules, shrink

HEADS, WIDTH, LENGTH, EXAMPLES = 4, 8, 5, 3


def tensor(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def encoder(layers=2, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, **{"batch_first": True} | options)
    return nn.TransformerEncoder(layer, layers)


def test_no_gate_is_passed_by_on_torch_s_fused_path():
    model = encoder().eval()
    gates = gate_modules(model, "layers.*.self_attn", on="heads", evaluation="threshold")
    assert [*gates] == ["layers.0.self_attn", "layers.1.self_attn"]
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    with torch.no_grad():
        assert torch.allclose(model(x), encoder().eval()(x), atol=1e-6)  # all are open
    gates["layers.0.self_attn"].logits.data[:3] = -3
    expected = model(x)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-6)
        assert not torch.allclose(model(x), encoder().eval()(x), atol=1e-3)


def test_a_gate_in_the_place_of_a_dropout_is_not_passed_by():
    layer = encoder().layers[0].eval()
    gate = StochasticGateModule(WIDTH, evaluation="threshold")
    gate.logits.data.fill_(-3)
    layer.dropout2 = nn.Sequential(layer.dropout2, gate).eval()
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    expected = layer(x)
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-6)
    assert torch.allclose(expected, layer.norm2(layer.norm1(x + layer._sa_block(x, None, None))), atol=1e-6)


@pytest.mark.parametrize("gates", [
    {"names": "layers.*.self_attn", "on": "heads"},
    {"names": "layers.*", "closed": "skip"},
    {"names": "layers.*.linear1", "num_gates": 16},
])  # fmt: skip
def test_padded_examples_go_through_an_encoder_with_gates(gates):
    model = encoder().eval()
    outer = nn.Sequential(model)
    made = gate_modules(outer, "0." + gates.pop("names"), evaluation="threshold", **gates)
    next(iter(made.values())).logits.data.fill_(-3)
    padded = torch.arange(LENGTH) >= torch.tensor([[5], [3], [4]])
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    expected = model(x, src_key_padding_mask=padded)
    with torch.no_grad():
        assert torch.allclose(model(x, src_key_padding_mask=padded), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_input_is_refused_with_the_remedy():
    model = encoder().eval()
    for layer in model.layers:  # past the encoder, whose `use_nested_tensor` is still True
        gate_modules(layer, "self_attn", on="heads")
    padded = torch.arange(LENGTH) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad(), pytest.raises(TypeError, match="use_nested_tensor = False"):
        model(tensor(EXAMPLES, LENGTH, WIDTH), src_key_padding_mask=padded)


def test_shrunk_encoders_run_fused_with_layers_skipped_and_heads_and_units_gone():
    model = encoder(3)
    skips = gate_modules(model, "layers.*", closed="skip", evaluation="threshold")
    heads = gate_modules(model, "layers.*.self_attn", on="heads", evaluation="threshold")
    units = gate_modules(model, "layers.*.linear1", 16, evaluation="threshold")
    skips["layers.0"].logits.data.fill_(-3)
    heads["layers.1.self_attn"].logits.data[0] = -3
    units["layers.2.linear1"].logits.data[4:] = -3
    x = tensor(EXAMPLES, LENGTH, WIDTH)
    expected = model.eval()(x)
    small = copy.deepcopy(shrink(model, x))
    assert [len(layer.linear1.weight) for layer in small.layers[1:]] == [16, 4]
    assert len([*small.layers[0].parameters()]) == 0
    assert torch.allclose(small(x), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(small(x), expected, atol=1e-6)
