"""Estimators without temporaries, in batches, and under torch's transforms: what the formula gives."""

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, vmap

from lightning_fl_ext.gates import bernoulli_sample
from lightning_fl_ext.gates import estimators as estimators_module
from lightning_fl_ext.gates import relaxed as relaxed_module
from lightning_fl_ext.gates.relaxed import RELAXED as RELAXED_FAMILIES
from lightning_fl_ext.gates.relaxed import relaxed_sample

BINARY = ("probability", "identity", "reinmax")
RELAXED = ("concrete", "hard_concrete", "gaussian")
EVERY = BINARY + RELAXED

# Raised by torch itself while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning"),
]


@pytest.mark.parametrize("estimator", RELAXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_computed_in_place_samples_and_derivatives_are_those_of_the_formula(
    estimator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    relaxation, generator = RELAXED_FAMILIES[estimator], torch.Generator().manual_seed(0)
    probs = torch.rand(2000, generator=generator, dtype=dtype)
    probs[:3] = torch.tensor([0.5, 1e-4, 1 - 1e-4])
    probs.requires_grad_()
    uniform, weights, more = (torch.rand(2000, generator=generator, dtype=dtype) for _ in range(3))

    def outcome() -> list[Tensor]:
        sample = relaxed_sample(probs, uniform.clone(), relaxation, 0.7)
        (first,) = torch.autograd.grad(sample, probs, weights, retain_graph=True)
        (again,) = torch.autograd.grad(sample, probs, weights, create_graph=True)
        (second,) = torch.autograd.grad(again, probs, more)
        return [sample.detach(), first, again.detach(), second]

    in_place = outcome()
    monkeypatch.setattr(relaxed_module, "has_values", lambda tensor: False)
    formula = outcome()
    loose = 1e-9 if dtype == torch.float64 else 1e-3
    for one, two in zip(in_place, formula, strict=True):
        torch.testing.assert_close(one, two, rtol=loose, atol=loose * float(two.abs().median()))
    assert formula[3].abs().max() > 0


@pytest.mark.parametrize("estimator", ["identity", "reinmax"])
def test_constant_factors_without_temporaries_are_those_of_the_formula(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    probs = torch.rand(2000, requires_grad=True, generator=torch.Generator().manual_seed(0))
    incoming = torch.rand(2000, requires_grad=True, generator=torch.Generator().manual_seed(1))

    def outcome() -> list[Tensor]:
        torch.manual_seed(2)
        sample = bernoulli_sample(probs, estimator)
        drawn = sample.detach().clone()
        sample.mul_(3)  # of its own
        (first,) = torch.autograd.grad(sample, probs, incoming, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), incoming)
        return [drawn, first.detach(), second]

    alone = outcome()
    monkeypatch.setattr(estimators_module, "only_backward", lambda tensor: False)
    for one, two in zip(alone, outcome(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", EVERY)
def test_gradients_in_batches_are_those_one_by_one(estimator: str) -> None:
    probs = torch.rand(6, dtype=torch.float64, requires_grad=True)
    sample = bernoulli_sample(probs, estimator)
    eye = torch.eye(6, dtype=torch.float64)
    (together,) = torch.autograd.grad(sample, probs, eye, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(sample, probs, row, retain_graph=True)[0] for row in eye]
    torch.testing.assert_close(together, torch.stack(alone))


@pytest.mark.parametrize("estimator", EVERY)
def test_vmap(estimator: str) -> None:
    probs = torch.full((3, 40), 0.5)
    different = vmap(lambda p: bernoulli_sample(p, estimator), randomness="different")(probs)
    same = vmap(lambda p: bernoulli_sample(p, estimator), randomness="same")(probs)
    assert not torch.equal(different[0], different[1])
    assert torch.equal(same[0], same[1])


@pytest.mark.parametrize("estimator", EVERY[1:])
def test_forward_mode_agrees_with_reverse_mode(estimator: str) -> None:
    def gates(probs: Tensor) -> Tensor:
        torch.manual_seed(0)
        return bernoulli_sample(probs, estimator)

    probs = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(jacfwd(gates, randomness="same")(probs), jacrev(gates)(probs))


def test_the_default_has_no_forward_mode() -> None:
    with pytest.raises(NotImplementedError, match="jvp"):
        jacfwd(bernoulli_sample, randomness="same")(torch.rand(3))


@pytest.mark.parametrize("estimator", EVERY)
def test_traces_into_one_graph(estimator: str) -> None:
    probs = torch.rand(50, requires_grad=True)
    compiled = torch.compile(bernoulli_sample, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    gates = compiled(probs, estimator)
    torch.manual_seed(0)
    expected = bernoulli_sample(probs, estimator)
    torch.testing.assert_close(gates, expected)
    weights = torch.randn(50)
    torch.testing.assert_close(
        torch.autograd.grad(gates, probs, weights), torch.autograd.grad(expected, probs, weights)
    )
