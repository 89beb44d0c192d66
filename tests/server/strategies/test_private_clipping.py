"""Under Flower's wrappers for differential privacy: what is clipped and noised, and what noise is worth."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
)

WEIGHED = FedAvg(weighted_by_key="one", fraction_evaluate=0.0)
CLIPPING = {
    "fixed": lambda noise: DifferentialPrivacyServerSideFixedClipping(WEIGHED, noise, 0.5, 5),
    "adaptive": lambda noise: DifferentialPrivacyServerSideAdaptiveClipping(
        WEIGHED, noise, 5, initial_clipping_norm=0.5, clipped_count_stddev=1.0
    ),
}


class Scaled(torch.nn.Module):
    """Weights, a learned scale without dimensions, and integers."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4))
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(7))
        self.register_buffer("seen", torch.tensor([3, 4]))
        self.register_buffer("mask", torch.tensor([True, False]))


def moved(arrays, partition, server_round):
    """A change of norm 1 in the floats, and one of hundreds in the integers."""
    return {
        "weight": arrays["weight"] + np.float32(0.3),
        "scale": arrays["scale"] + np.float32(0.8),
        "batches": arrays["batches"] + 100 + partition,
        "seen": arrays["seen"] + 1000,
        "mask": ~arrays["mask"],
    }


def fit(toy, strategy, **options):
    app = toy.make_app(fit=moved, extra={"one": 1}, **options)
    return toy.make_trainer(strategy, max_rounds=1).fit(Scaled(), toy.make_grid(5, app)).model


@pytest.mark.parametrize("kind", CLIPPING)
def test_the_norm_is_that_of_the_floats_and_each_of_them_is_clipped(toy, kind):
    """A change of norm 1 is halved; a count of batches in it would leave a hundredth."""
    model = fit(toy, CLIPPING[kind](0.0))
    np.testing.assert_allclose(model.weight.detach(), np.full(4, 0.15), rtol=1e-5)
    np.testing.assert_allclose(model.scale.item(), 1.4, rtol=1e-5)
    assert model.scale.shape == ()


@pytest.mark.parametrize("kind", CLIPPING)
def test_what_cannot_be_clipped_stays_as_it_was(toy, kind):
    model = fit(toy, CLIPPING[kind](0.5))
    assert model.batches == 7
    assert model.seen.tolist() == [3, 4]
    assert model.mask.tolist() == [True, False]
    assert model.scale.item() != pytest.approx(1.4, rel=1e-5)  # noised


def test_a_model_without_such_arrays_is_clipped_as_flower_does_it(toy):
    strategy = DifferentialPrivacyServerSideFixedClipping(WEIGHED, 0.0, 0.5, 5)
    start = {name: tensor.detach().numpy() for name, tensor in toy.Net().state_dict().items()}
    steps = []
    for partition in range(5):
        step = {n: a - start[n] for n, a in toy.local_fit(start, partition, 1).items()}
        norm = np.sqrt(sum(np.square(a).sum() for a in step.values()))
        steps.append({n: a * min(1.0, 0.5 / norm) for n, a in step.items()})
    grid = toy.make_grid(5, toy.make_app(extra={"one": 1}))
    result = toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), grid).model.state_dict()
    for name, array in start.items():
        expected = array + np.mean([step[name] for step in steps], axis=0)
        np.testing.assert_allclose(result[name].numpy(), expected, rtol=1e-5)


def test_clients_that_clip_by_flower_s_mod_are_told_what_it_clips_wrongly(toy, caplog):
    wrapped = DifferentialPrivacyClientSideFixedClipping(WEIGHED, 0.1, 0.5, 5)
    fit(toy, wrapped)
    assert "count `scale`, `batches`, `seen`, `mask` in the norm" in caplog.text
    assert "let the server clip: `DifferentialPrivacyServerSideFixedClipping`" in caplog.text
    caplog.clear()
    grid = toy.make_grid(5, toy.make_app(extra={"one": 1}))
    toy.make_trainer(wrapped, max_rounds=1).fit(toy.Net(), grid)
    assert "in the norm" not in caplog.text


def test_noise_for_equal_weights_is_told_where_they_differ(toy, caplog):
    """The largest of five has 38 of 120 examples: its noise multiplier is 1 / (5 * 38 / 120)."""

    def said(inner):
        caplog.clear()
        wrapped = DifferentialPrivacyServerSideFixedClipping(inner, 1.0, 0.5, 5)
        grid = toy.make_grid(5, toy.make_app(extra={"one": 1}))
        toy.make_trainer(wrapped, max_rounds=2).fit(toy.Net(), grid)
        return caplog.text.count("the noise multiplier is")

    assert said(FedAvg()) == 1
    assert (
        "the largest has 32 % of the weight: for that client the noise multiplier is 0.632, not 1"
        in caplog.text
    )
    assert "`FedAvg(weighted_by_key='one')`" in caplog.text
    assert said(FedAvg(weighted_by_key="one", fraction_evaluate=0.0)) == 0
    assert said(FedMedian()) == 0
