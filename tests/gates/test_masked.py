import copy
import io
import math
import pickle
import subprocess
import sys

import lightning as L
import pytest
import torch
from torch import nn

from lightning_fl_ext.gates.masked import MaskedModule

pytestmark = [
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


@torch.no_grad()
def multiply_by_hand(plain, masks):
    for name, weight in plain.named_parameters():
        weight.mul_(masks[name].float())


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_training_applies_one_sample_and_gives_the_scores_their_gradient(name, flat):
    """Against the plain module with weights multiplied by hand, and the chain rule written out."""
    masked, plain, inputs = build(name, flat=flat)
    probs = {n: p.detach().clone() for n, p in masked.mask_probs().items()}
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
    probs = masked.mask_probs()
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
    probs = masked.mask_probs()
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


# --- what is masked, and from what it is built --------------------------------------------------------------


def test_patterns_choose_what_is_masked_and_leave_the_rest_trainable():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    head = net[2].weight.detach().clone()
    masked = MaskedModule(net, include="*.weight", exclude=["2.*"])
    assert list(masked.mask_probs()) == ["0.weight", "1.weight"]
    trainable = {n for n, p in masked.named_parameters() if p.requires_grad}
    unmasked = {"module.0.bias", "module.1.bias", "module.2.weight", "module.2.bias"}
    assert trainable == unmasked | {"scores.0.weight", "scores.1.weight"}
    assert torch.equal(net[2].weight, head)
    masked(torch.randn(8, 4)).sum().backward()
    assert net[2].weight.grad is not None
    assert net[1].running_mean.any()


def test_a_tied_parameter_is_excluded_under_any_of_its_names():
    with pytest.raises(ValueError, match=r"embed\.weight"):
        MaskedModule(Tied(), exclude="head.*")


@pytest.mark.parametrize("options", [{"include": "fc.*"}, {"exclude": ("bias", "fc.*")}])
def test_a_pattern_that_matches_nothing_is_refused_with_the_names_there_are(options):
    with pytest.raises(ValueError, match=rf"`{next(iter(options))}`.*'fc\.\*'.*weight, bias"):
        MaskedModule(nn.Linear(2, 2), **options)


def test_patterns_that_leave_nothing_to_mask_are_refused():
    with pytest.raises(ValueError, match="select no floating parameter"):
        MaskedModule(nn.Linear(2, 2), exclude="*")


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: nn.Linear, TypeError, "Got the class Linear"),
        (lambda: "net", TypeError, "Got 'net'"),
        (lambda: nn.Sequential(MaskedModule(nn.Linear(2, 2))), ValueError, "holds a `MaskedModule` already"),
        (lambda: nn.Linear(2, 2, device="meta"), ValueError, "without values yet: weight, bias"),
        (lambda: nn.LazyLinear(2), ValueError, "without values yet: weight, bias"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_cannot_be_masked_is_refused(build, kind, message):
    with pytest.raises(kind, match=message):
        MaskedModule(build())


def test_signed_constants_follow_from_the_seed_alone():
    torch.manual_seed(0)
    first = MaskedModule(nn.Conv2d(3, 5, 2), seed=7)
    torch.manual_seed(1)
    second = MaskedModule(nn.Conv2d(3, 5, 2), seed=7)
    other = MaskedModule(nn.Conv2d(3, 5, 2), seed=8)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert torch.equal(first.frozen_digest, second.frozen_digest)
    assert not torch.equal(first.frozen_digest, other.frozen_digest)
    weight = first.module.weight
    torch.testing.assert_close(weight.abs(), torch.full_like(weight, math.e / math.sqrt(3 * 2 * 2)))
    assert 0.2 < (weight > 0).float().mean() < 0.8
    torch.testing.assert_close(first.module.bias.abs(), torch.full((5,), math.e / math.sqrt(5)))


def test_building_leaves_the_global_random_state_alone():
    module = nn.Linear(2, 2)
    before = torch.get_rng_state()
    MaskedModule(module)
    assert torch.equal(torch.get_rng_state(), before)


def test_norm_weights_of_one_stay_and_kept_values_stay():
    masked = MaskedModule(nn.LayerNorm(4))
    assert torch.equal(masked.module.weight, torch.ones(4))
    linear = nn.Linear(4, 4)
    values = copy.deepcopy(linear.state_dict())
    MaskedModule(linear, init="keep")
    torch.testing.assert_close(linear.state_dict(), values, rtol=0, atol=0)


def test_the_digest_names_the_weights_as_built_whatever_they_are_cast_to():
    digest = MaskedModule(nn.Linear(4, 4)).frozen_digest
    assert torch.equal(MaskedModule(nn.Linear(4, 4)).bfloat16().frozen_digest, digest)
    assert torch.equal(MaskedModule(nn.Linear(4, 4), flat=True).frozen_digest, digest)
    assert not torch.equal(MaskedModule(nn.Linear(4, 4), exclude="bias").frozen_digest, digest)


def test_probabilities_are_loaded_within_a_hundredth_of_certainty():
    for flat in (False, True):
        masked = MaskedModule(nn.Linear(3, 1, bias=False), flat=flat)
        masked.load_mask_probs({"weight": torch.tensor([[0.0, 0.3, 1.0]])})
        assert masked.mask_probs()["weight"].tolist()[0] == pytest.approx([0.01, 0.3, 0.99], abs=1e-6)
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
    expected = sum(p.sum() for p in masked.mask_probs().values())
    torch.testing.assert_close(masked.expected_open(), expected)
    masked.expected_open().backward()
    p = masked.mask_probs()["weight"]
    torch.testing.assert_close(masked.scores.weight.grad, (p * (1 - p)).detach())


def test_the_estimator_decides_the_gradient():
    x = torch.tensor([[2.0]])
    for estimator, factor in [("probability", lambda p: p), ("identity", lambda p: 1.0)]:
        masked = MaskedModule(nn.Linear(1, 1, bias=False), estimator=estimator)
        masked(x).sum().backward()
        p = masked.mask_probs()["weight"].detach()
        expected = 2.0 * masked.module.weight * factor(p) * p * (1 - p)
        torch.testing.assert_close(masked.scores.weight.grad, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"init": "zeros"},
        {"evaluation": "median"},
        {"evaluation": 0},
        {"evaluation": True},
        {"estimator": "none"},
        {"seed": 0.5},
    ],
)
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        MaskedModule(nn.Linear(2, 2), **options)


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


# --- copies, files, precisions, compilation -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["nested", "lstm", "tied", "shared", "transformer"])
@pytest.mark.parametrize("flat", [False, True])
def test_copies_and_pickles_compute_the_same_and_share_nothing(name, flat):
    masked, _, inputs = build(name, flat=flat)
    masked.eval()
    for twin in (copy.deepcopy(masked), pickle.loads(pickle.dumps(masked))):
        torch.testing.assert_close(output_of(twin, inputs), output_of(masked, inputs), rtol=0, atol=0)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert (output_of(masked, inputs) != 0).any()


@pytest.mark.parametrize("flat", [False, True])
def test_a_state_dict_has_clean_names_and_restores_the_module(flat):
    masked, _, inputs = build("nested", flat=flat)
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    state = masked.state_dict()
    assert set(state) >= {f"module.{n}" for n in names} | {"frozen_digest"}
    assert {k for k in state if k.startswith("scores")} == (
        {"scores"} if flat else {f"scores.{n}" for n in names}
    )
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = MaskedModule(LAYERS["nested"][0](), seed=5, flat=flat)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other.eval()(*inputs), masked.eval()(*inputs), rtol=0, atol=0)
    assert torch.equal(other.frozen_digest, masked.frozen_digest)


def test_scores_stay_in_single_precision_when_weights_are_cast():
    for flat in (False, True):
        masked = MaskedModule(nn.Linear(3, 2), flat=flat).bfloat16()
        assert {p.dtype for n, p in masked.named_parameters() if "scores" in n} == {torch.float32}
        assert masked.module.weight.dtype == torch.bfloat16
        assert masked(torch.ones(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert MaskedModule(nn.Linear(3, 2), flat=flat).double().mask_probs()["bias"].dtype == torch.float64


@pytest.mark.parametrize(("name", "flat"), [("nested", False), ("nested", True), ("shared", False)])
def test_it_compiles_without_a_break_and_computes_the_same(name, flat):
    masked, _, inputs = build(name, flat=flat)
    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    loss_of(compiled(*inputs)).backward()
    gradients = [p.grad.clone() for p in masked.parameters() if p.requires_grad]
    masked.zero_grad()
    torch.manual_seed(5)
    loss_of(masked(*inputs)).backward()
    expected = [p.grad for p in masked.parameters() if p.requires_grad]
    torch.testing.assert_close(gradients, expected)
    masked.eval()
    torch.testing.assert_close(compiled(*inputs), masked(*inputs))


class LitMasked(L.LightningModule):
    def __init__(self):
        super().__init__()
        net = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        self.net = MaskedModule(net, seed=3)

    def training_step(self, batch, _):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x).float(), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_trainer_learns_the_masks_and_leaves_the_weights(precision, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x[:, 0] > x[:, 1]).long()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    model = LitMasked()
    frozen = {n: p.detach().clone() for n, p in model.net.module.named_parameters()}
    before = model.net.mask_probs()["0.weight"].detach().clone()
    trainer = L.Trainer(
        max_epochs=20,
        precision=precision,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, loader)
    weights = dict(model.net.module.named_parameters())
    for name, value in frozen.items():
        torch.testing.assert_close(weights[name], value.to(weights[name].dtype), rtol=0, atol=0)
    assert (model.net.mask_probs()["0.weight"] - before).abs().mean() > 0.1

    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = LitMasked.load_from_checkpoint(tmp_path / "model.ckpt", map_location="cpu").float()
    baked = loaded.net.bake("mean").eval()
    accuracy = (baked(x).argmax(1) == y).float().mean()
    assert accuracy > 0.9
