"""Gates on modules of a model that is there already."""

import copy

import pytest
import torch
from torch import nn

from lightning_fl_ext.gates import StochasticGateModule, gate_modules, shrink

ROWS = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def layers():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 2))


def decide(gates, **is_open):
    for name, gate in gates.items():
        gate.evaluation = "threshold"
        gate.logits.data.fill_(3.0 if is_open.get(f"m{name}", True) else -3.0)


def test_patterns_choose_part_by_part_and_names_of_weights_stay():
    model = layers()
    before = copy.deepcopy(model.state_dict())
    gates = gate_modules(model, ["?.0", "3"])
    assert [*gates] == ["0.0", "1.0", "2.0", "3"]
    assert before.keys() <= model.state_dict().keys()
    assert sum("stochastic_gate.logits" in name for name in model.state_dict()) == 4


def test_a_pattern_passes_gates_that_are_there_by():
    model = layers()
    gate_modules(model, "0")
    assert [*gate_modules(model, "0.*", on="input")] == ["0.0", "0.1"]


def test_a_closed_layer_gives_zeros_or_is_skipped():
    plain, model = layers(), layers()
    gates = gate_modules(model[:3], "*", closed="skip")
    decide(gates, m1=False)
    assert torch.equal(model.eval()(ROWS), plain[3](plain[2](plain[0](ROWS))))
    model = layers()
    decide(gate_modules(model, "1"), m1=False)
    assert torch.equal(model.eval()(ROWS), plain[3](plain[2](torch.zeros(5, 8))))


def test_examples_are_skipped_one_by_one_and_the_gates_learn():
    model = layers()[0:1]
    (gate,) = gate_modules(model, "0", closed="skip", init_prob=0.5).values()
    torch.manual_seed(2)
    out = model(ROWS)
    same = (out == ROWS).all(1)
    assert 0 < same.sum() < 5
    out.sum().backward()
    assert gate.logits.grad.abs() > 0


def test_channels_and_heads_are_gated_by_the_other_arguments():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(2), nn.Linear(36, 6))
    gate_modules(model, "0", 4, dim=1, evaluation="threshold")["0"].logits.data[2] = -3
    heads = gate_modules(model, "2", 3, on="input", groups=[0] * 12 + [1] * 12 + [2] * 12)
    assert model(torch.ones(2, 1, 8, 8)).shape == (2, 4, 6)
    assert heads["2"].logits.shape == (3,)
    seen = []
    model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    heads["2"].evaluation = "threshold"
    heads["2"].logits.data[1] = -3
    model.eval()(torch.ones(2, 1, 8, 8))
    assert (seen[0][:, :, 12:24] == 0).all()
    assert (seen[0][:, 2] == 0).all()
    assert (seen[0][:, 0, :12] != 0).any()


def test_each_channel_has_a_gate_whatever_the_width():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3), nn.InstanceNorm2d(6),
        nn.GroupNorm(2, 6), nn.Flatten(2), nn.LayerNorm(64), nn.Linear(64, 7), nn.RMSNorm(7),
    )  # fmt: skip
    gates = gate_modules(model, [str(i) for i in (0, 1, 2, 3, 4, 6, 7, 8)], on="channels", init_prob=0.5)
    assert [gate.logits.numel() for gate in gates.values()] == [4, 4, 6, 6, 6, 64, 7, 7]
    assert [gate.dim for gate in gates.values()] == [1] * 5 + [-1] * 3
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(gate.logits.grad is not None for gate in gates.values())
    words = nn.ModuleDict({"table": nn.Embedding(5, 3)})
    (gate,) = gate_modules(words, "table", on="channels").values()
    assert words["table"](torch.tensor([[1, 2]])).shape == (1, 2, 3)
    assert gate.logits.shape == (3,)


def test_transformer_layers_are_skipped_also_on_torch_s_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    plain = copy.deepcopy(model)
    gates = gate_modules(model, "layers.*", closed="skip")
    decide(gates, **{"mlayers.1": False})
    expected = plain.layers[2](plain.layers[0](ROWS[None]))
    with torch.no_grad():
        assert torch.allclose(model(ROWS[None]), expected, atol=1e-6)
    small = shrink(model, ROWS[None])
    assert sum(p.numel() for p in small.parameters()) == 2 * sum(
        p.numel() for p in plain.layers[0].parameters()
    )
    assert torch.allclose(small(ROWS[None]), expected, atol=1e-6)


@pytest.mark.parametrize("how", [{}, {"on": "input"}, {"closed": "skip"}])
def test_a_sequence_is_gated_once(how):
    model = layers()
    f = copy.deepcopy(model[1])
    gate = gate_modules(model, "1", init_prob=0.3, **how)["1"]
    calls = []
    gate.register_forward_hook(lambda gate, args, output: calls.append(output is not args[0]))
    expected = {"input": f(0.3 * ROWS), "skip": 0.7 * ROWS + 0.3 * f(ROWS)}
    found = model[1].eval()(ROWS)
    assert torch.allclose(found, expected.get([*how.values(), ""][0], 0.3 * f(ROWS)), atol=1e-6)
    assert sum(calls) == 1
    model.train()[1](ROWS).sum().backward()
    assert gate.logits.grad.abs() > 0
    gate.evaluation = "threshold"
    assert torch.allclose(shrink(model, ROWS).eval()(ROWS), model.eval()(ROWS), atol=1e-6)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return sum(branch(x) for branch in self.children())


def test_a_module_that_calls_all_of_its_children_is_not_gated_twice():
    model = nn.Sequential(Branches())
    gate_modules(model, "0")
    with pytest.raises(TypeError, match="calls all of its children"):
        model(ROWS)
    model = nn.Sequential(Branches())
    (gate,) = gate_modules(model, "0.left").values()
    gate.logits.data.fill_(-30)
    assert torch.allclose(model.eval()(ROWS), model[0].right(ROWS))


def test_tuples_are_gated_in_their_first_item():
    model = nn.Sequential(nn.LSTM(8, 8))
    decide(gate_modules(model, "0", per_example=False), m0=False)
    out, (h, _) = model.eval()(ROWS)
    assert (out == 0).all()
    assert (h != 0).all()


def test_gates_are_in_the_mode_of_the_model_that_they_are_put_on():
    model = layers().eval()
    (gate,) = gate_modules(model, "0").values()
    assert not gate.training
    assert torch.equal(model(ROWS), model(ROWS))
    assert gate_modules(model.train(), "1")["1"].training


def test_copies_have_gates_of_their_own():
    model = layers()
    gate_modules(model, "0")
    other = copy.deepcopy(model)
    decide({"0": other[0].stochastic_gate}, m0=False)
    assert (other.eval()[0](ROWS) == 0).all()
    assert (model.eval()[0](ROWS) != 0).all()


def test_shrunk_layers_that_are_skipped_are_gone():
    model = layers()
    decide(gate_modules(model[:3], "*", closed="skip"), m0=False, m2=False)
    small = shrink(model, ROWS)
    assert torch.allclose(small.eval()(ROWS), model.eval()(ROWS), atol=1e-6)
    assert [name for name, _ in small.named_parameters()] == ["1.0.weight", "1.0.bias", "3.weight", "3.bias"]
    assert not any(m._forward_hooks for m in small.modules())
    kept = shrink(model, ROWS, keep="0.*")
    assert "0.0.weight" in kept.state_dict()
    assert torch.allclose(kept.eval()(ROWS), model.eval()(ROWS), atol=1e-6)


def test_shrunk_heads_lose_the_columns_of_the_projection():
    model = layers()
    gate_modules(model, "3", 2, on="input", groups=[0, 0, 0, 0, 1, 1, 1, 1])["3"].logits.data[0] = -3
    small = shrink(model, ROWS)
    assert small[3].in_features == 4
    assert small[2][0].out_features == 4
    assert not any(isinstance(m, StochasticGateModule) for m in small.modules())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"names": "layers.*"}, r"in which `\*` stands for one part .*, matches none of the modules"),
    ({"names": "0.out_proj"}, "is never called"),
    ({"names": "1", "on": "input", "closed": "skip"}, "is about the output"),
    ({"names": "1", "on": "inside"}, '`on` must be "output", "input", "channels" or "heads"'),
    ({"names": "2"}, "is a gate layer itself"),
    ({"names": "3"}, "has gates already"),
    ({"names": "4"}, "a ModuleList, which is never called"),
    ({"names": "6", "on": "channels"}, "which does not tell how many channels"),
    ({"names": "7", "on": "channels"}, "which does not tell how many channels"),
    ({"names": "1", "on": "channels", "dim": 1}, 'on="channels"` counts the channels itself'),
    ({"names": "0"}, "takes its batch second"),
    ({"names": "5"}, "takes its batch second"),
])  # fmt: skip
def test_what_cannot_be_gated_is_refused(arguments, message):
    model = nn.Sequential(
        *(nn.MultiheadAttention(4, 2), nn.Linear(4, 4), StochasticGateModule(4), nn.Linear(4, 4)),
        *(
            nn.ModuleList([nn.Linear(4, 4)]),
            nn.TransformerEncoderLayer(4, 2),
            nn.ReLU(),
            nn.LayerNorm((4, 4)),
        ),
    )
    gate_modules(model, "3")
    with pytest.raises(ValueError, match=message):
        gate_modules(model, **arguments)


@pytest.mark.parametrize("how", [{"on": "input"}, {"closed": "skip"}])
def test_the_first_argument_must_be_given_by_its_position(how):
    model = layers()
    gate_modules(model, "3", **how)
    with pytest.raises(ValueError, match="first argument, by its position, to be a tensor"):
        model[3](input=ROWS)


def test_a_module_that_changes_the_shape_cannot_be_skipped():
    model = layers()
    gate_modules(model, "3", closed="skip")
    with pytest.raises(
        ValueError, match=r"must return the shape of its first argument, \(.*\)\. Got \(.*\)\. Leave what"
    ):
        model(ROWS)
