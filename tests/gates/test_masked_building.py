"""What a masked module masks, and from what it is built."""

import copy
import math

import pytest
import torch
from _masked_layers import WARNINGS, Tied
from torch import nn

from lightning_fl_ext.gates.masked import MaskedModule

pytestmark = WARNINGS


def test_patterns_choose_what_is_masked_and_leave_the_rest_trainable():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    head = net[2].weight.detach().clone()
    masked = MaskedModule(net, include="*.weight", exclude=["2.*"])
    assert list(masked.probs) == ["0.weight", "1.weight"]
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
