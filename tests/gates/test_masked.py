"""What a masked module computes in training, evaluation and baked, and that nothing gets past its masks."""

import copy
import subprocess
import sys

import pytest
import torch
from _masked_layers import LAYERS, WARNINGS, build, loss_of, output_of
from torch import nn

from lightning_fl_ext.gates.masked import MaskedModule

pytestmark = WARNINGS


@torch.no_grad()
def multiply_by_hand(plain, masks):
    for name, weight in plain.named_parameters():
        weight.mul_(masks[name].float())


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_training_applies_one_sample_and_gives_the_scores_their_gradient(name, flat):
    """Against the plain module with weights multiplied by hand, and the chain rule written out."""
    masked, plain, inputs = build(name, flat=flat)
    probs = {n: p.detach().clone() for n, p in masked.probs.items()}
    values = {n: w.detach().clone() for n, w in plain.named_parameters()}
    torch.manual_seed(3)
    output = output_of(masked, inputs)
    torch.manual_seed(3)
    vector = torch.rand(sum(p.numel() for p in probs.values())) if flat else None
    draws = vector.split([p.numel() for p in probs.values()]) if flat else None
    masks = {
        n: (draws[i].view_as(p) if flat else torch.rand(p.shape)) < p
        for i, (n, p) in enumerate(probs.items())
    }
    multiply_by_hand(plain, masks)
    expected = output_of(plain, inputs)
    torch.testing.assert_close(output, expected)
    assert not any(mask.all() for mask in masks.values() if mask.numel() > 10)

    loss_of(output).backward()
    loss_of(expected).backward()
    gradients = dict(masked.named_parameters())
    if flat:
        parts = masked.scores.grad.split([p.numel() for p in probs.values()])
    for i, (n, p) in enumerate(probs.items()):
        score_gradient = parts[i].view_as(p) if flat else gradients[f"scores.{n}"].grad
        by_hand = dict(plain.named_parameters())[n].grad * values[n] * p * p * (1 - p)
        torch.testing.assert_close(score_gradient, by_hand, rtol=1e-4, atol=1e-5)
        assert gradients[f"module.{n}"].grad is None
    all_gradients = [p.grad for p in masked.parameters() if p.requires_grad]
    assert all(g is not None and (g != 0).any() for g in all_gradients)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("evaluation", ["mean", "threshold"])
def test_evaluation_multiplies_by_the_mean_or_the_likelier_value(name, evaluation):
    masked, plain, inputs = build(name, evaluation=evaluation)
    probs = masked.probs
    masks = probs if evaluation == "mean" else {n: p > 0.5 for n, p in probs.items()}
    multiply_by_hand(plain, masks)
    masked.eval()
    plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(output_of(masked, inputs), output_of(plain, inputs))
    torch.testing.assert_close(output_of(masked, inputs), output_of(plain, inputs))


@pytest.mark.parametrize("name", ["linear", "attention", "lstm"])
def test_evaluation_averages_the_outputs_of_samples(name):
    masked, _, inputs = build(name, evaluation=5)
    masked.eval()
    torch.manual_seed(4)
    output = output_of(masked, inputs)
    torch.manual_seed(4)
    single = [output_of(masked.bake("sample").eval(), inputs) for _ in range(5)]
    torch.testing.assert_close(output, torch.stack(single).mean(0))
    assert not torch.equal(single[0], single[1])


def test_outputs_that_cannot_be_averaged_are_refused():
    class Wordy(nn.Linear):
        def forward(self, x):
            return {"y": super().forward(x), "note": "text"}

    masked = MaskedModule(Wordy(2, 2), evaluation=2).eval()
    with pytest.raises(TypeError, match="Got str"):
        masked(torch.ones(1, 2))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", ["threshold", "mean"])
def test_a_baked_module_is_the_plain_one_with_multiplied_weights(name, rule):
    masked, plain, inputs = build(name)
    probs = masked.probs
    multiply_by_hand(plain, probs if rule == "mean" else {n: p > 0.5 for n, p in probs.items()})
    baked = masked.bake(rule)
    assert type(baked) is type(plain)
    torch.testing.assert_close(baked.state_dict(), plain.state_dict())
    assert all(p.requires_grad for p in baked.parameters())
    torch.testing.assert_close(output_of(baked.eval(), inputs), output_of(plain.eval(), inputs))


def test_a_baked_module_loads_where_this_package_is_unknown(tmp_path):
    masked, _, inputs = build("nested")
    baked = masked.bake().eval()
    torch.save(baked, tmp_path / "model.pt")
    torch.save((inputs, baked(*inputs)), tmp_path / "io.pt")
    code = (
        "import sys, torch; sys.modules['lightning_fl_ext'] = None\n"
        f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        f"inputs, output = torch.load({str(tmp_path / 'io.pt')!r})\n"
        "assert torch.equal(model(*inputs), output)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_baked_module_is_exported():
    masked, _, inputs = build("nested")
    baked = masked.bake().eval()
    exported = torch.export.export(baked, inputs).module()
    torch.testing.assert_close(exported(*inputs), baked(*inputs))


def test_every_forward_draws_anew_and_every_mask_once():
    masked, _, inputs = build("lstm")
    counted = []
    original = masked._masks
    masked._masks = lambda rule: counted.append(rule) or original(rule)
    first, second = output_of(masked, inputs), output_of(masked, inputs)
    assert not torch.equal(first, second)
    assert counted == ["sample", "sample"]


def test_tied_weights_share_one_score_in_both_places():
    masked, _, _ = build("tied")
    assert [n for n, _ in masked.scores.named_parameters()] == ["embed.weight"]
    masked.load_mask_probs({"embed.weight": torch.zeros(7, 5)})
    masked.evaluation = "threshold"
    assert (masked.eval()(torch.arange(7)) == 0).all()
    baked = masked.bake()
    assert baked.head.weight is baked.embed.weight


@pytest.mark.parametrize("name", ["tied", "shared"])
def test_a_forward_leaves_the_frozen_weights_where_they_were(name):
    masked, _, inputs = build(name)
    before = dict(masked.module.named_parameters())
    values = {n: p.detach().clone() for n, p in before.items()}
    for _ in range(2):
        output_of(masked, inputs)
    assert all(p is before[n] for n, p in masked.module.named_parameters())
    torch.testing.assert_close(dict(masked.module.named_parameters()), values, rtol=0, atol=0)


def test_samples_have_the_probabilities_of_the_masks():
    masked = MaskedModule(nn.Linear(1, 6, bias=False), init="keep")
    with torch.no_grad():
        masked.module.weight.fill_(1.0)
    probs = torch.linspace(0.05, 0.95, 6)
    masked.load_mask_probs({"weight": probs.view(6, 1)})
    outputs = torch.cat([masked(torch.ones(1, 1)) for _ in range(3000)])
    assert ((outputs == 0) | (outputs == 1)).all()
    assert (outputs.mean(0) - probs).abs().max() < 0.04


def test_probabilities_are_loaded_within_a_hundredth_of_certainty():
    for flat in (False, True):
        masked = MaskedModule(nn.Linear(3, 1, bias=False), flat=flat)
        masked.load_mask_probs({"weight": torch.tensor([[0.0, 0.3, 1.0]])})
        assert masked.probs["weight"].tolist()[0] == pytest.approx([0.01, 0.3, 0.99], abs=1e-6)
        assert all(p.isfinite().all() for p in masked.parameters())


@pytest.mark.parametrize(
    "probs",
    [
        {},
        {"weight": torch.ones(2, 1)},
        {"bias": torch.ones(1, 2)},
        {"weight": torch.full((1, 2), torch.nan)},
        {"weight": torch.tensor([[0.5, 1.5]])},
        {"weight": torch.tensor([[0.5, -1.0]])},
    ],
)
def test_probabilities_that_do_not_fit_are_refused(probs):
    with pytest.raises(ValueError, match="`probs`"):
        MaskedModule(nn.Linear(2, 1, bias=False)).load_mask_probs(probs)


def test_expected_open_is_the_sum_of_probabilities_and_differentiable():
    masked = MaskedModule(nn.Linear(3, 2))
    expected = sum(p.sum() for p in masked.probs.values())
    torch.testing.assert_close(masked.expected_open(), expected)
    masked.expected_open().backward()
    p = masked.probs["weight"]
    torch.testing.assert_close(masked.scores.weight.grad, (p * (1 - p)).detach())


def test_the_estimator_decides_the_gradient():
    x = torch.tensor([[2.0]])
    for estimator, factor in [("probability", lambda p: p), ("identity", lambda p: 1.0)]:
        masked = MaskedModule(nn.Linear(1, 1, bias=False), estimator=estimator)
        masked(x).sum().backward()
        p = masked.probs["weight"].detach()
        expected = 2.0 * masked.module.weight * factor(p) * p * (1 - p)
        torch.testing.assert_close(masked.scores.weight.grad, expected)


def test_a_bad_evaluation_that_is_set_later_is_named():
    masked = MaskedModule(nn.Linear(2, 2)).eval()
    masked.evaluation = "median"
    with pytest.raises(ValueError, match="`evaluation`"):
        masked(torch.ones(1, 2))


def test_frozen_weights_stay_frozen_when_everything_is_unfrozen():
    masked = MaskedModule(nn.Linear(2, 2)).requires_grad_(True)
    masked(torch.ones(1, 2)).sum().backward()
    assert masked.module.weight.grad is None
    assert masked.scores.weight.grad is not None


def test_an_unknown_rule_of_baking_is_named():
    with pytest.raises(ValueError, match="`rule`"):
        MaskedModule(nn.Linear(2, 2)).bake("median")


# --- the dense weights are out of reach ---------------------------------------------------------------------


def test_calls_past_the_masks_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    masked = MaskedModule(net)
    x = torch.ones(1, 4)
    for bypass in (net, net[0], masked.module, copy.deepcopy(masked).module):
        with pytest.raises(RuntimeError, match="called past it"):
            bypass(x)
    assert masked(x).shape == (1, 2)
    net[1](x)


@pytest.mark.parametrize("place", ["embed", "head"])
def test_a_tied_weight_cannot_be_called_past_its_mask_at_either_place(place):
    masked, _, _ = build("tied")
    layer = masked.module.get_submodule(place)
    with pytest.raises(RuntimeError, match="called past it"):
        layer(torch.arange(5) if place == "embed" else torch.ones(1, 5))


class WithMethods(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.weight = nn.Parameter(torch.ones(3))
        self.classes = 3

    def forward(self, x):
        return self.body(x) * self.weight

    def name_of(self, index):
        return f"class {index} of {self.classes}"

    def features(self, x):
        return self.body(x)


def test_attributes_and_methods_that_call_no_masked_layer_are_passed_on():
    masked = MaskedModule(WithMethods())
    assert (masked.classes, masked.name_of(1)) == (3, "class 1 of 3")
    assert copy.deepcopy(masked).name_of(0) == "class 0 of 3"
    assert not hasattr(masked, "nothing")
    with pytest.raises(RuntimeError):
        masked.features(torch.ones(1, 4))  # the layer's own guard
    with pytest.raises(AttributeError, match=r"`weight` of .* is masked.*`bake\(\)\.weight`"):
        masked.weight  # noqa: B018
    assert MaskedModule(WithMethods(), include="body.*").weight.tolist() == [1, 1, 1]
