from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.aggregation.mask_posterior import MaskPosterior, ThetaCounts


def draw_masks(rng, clients, size=40):
    return [rng.random(size) < rng.random(size) for _ in range(clients)]


def reference_theta(rounds, prior, reset_every):
    """Algorithm 2 of Isik et al. (2023) in exact fractions: θ = (α − 1) / (α + β − 2)."""
    for number, masks in enumerate(rounds):
        if number % reset_every == 0:
            alpha = beta = [Fraction(prior)] * len(masks[0])
        opened = [sum(bool(m[i]) for m in masks) for i in range(len(masks[0]))]
        alpha = [a + o for a, o in zip(alpha, opened, strict=True)]
        beta = [b + len(masks) - o for b, o in zip(beta, opened, strict=True)]
    return [(a - 1) / (a + b - 2) for a, b in zip(alpha, beta, strict=True)]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    clients=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    prior=st.integers(1, 4),
    reset_every=st.integers(1, 4),
)
def test_theta_is_the_mode_of_the_beta_posterior_exactly(seed, clients, prior, reset_every):
    rng = np.random.default_rng(seed)
    rounds = [draw_masks(rng, k) for k in clients]
    posterior = MaskPosterior.start(40, prior=prior, reset_every=reset_every)
    for masks in rounds:
        posterior = posterior.update(masks)
    theta = posterior.theta()
    assert [Fraction(int(c), theta.trials) for c in theta.counts] == reference_theta(
        rounds, prior, reset_every
    )


def test_the_order_of_masks_does_not_matter():
    masks = draw_masks(np.random.default_rng(0), 9)
    forward = MaskPosterior.start(40).update(masks).theta()
    backward = MaskPosterior.start(40).update(reversed(masks)).theta()
    assert np.array_equal(forward.counts, backward.counts)


def test_update_leaves_the_posterior_before_it_as_it_was():
    masks = draw_masks(np.random.default_rng(0), 3)
    before = MaskPosterior.start(40, reset_every=2).update(masks)
    opened = before.opened.copy()
    before.update(masks)
    assert np.array_equal(before.opened, opened)
    assert (before.masks, before.rounds) == (3, 1)


def test_theta_stays_within_a_hundredth_of_certainty():
    theta = ThetaCounts(np.array([0, 1, 99, 100], dtype=np.uint16), trials=100)
    assert theta.probabilities() == pytest.approx([0.01, 0.01, 0.99, 0.99], abs=2**-16)
    assert theta.probabilities().min() >= 0.01
    assert theta.probabilities().max() <= 0.99
    assert np.isfinite(np.log(theta.probabilities() / (1 - theta.probabilities()))).all()


@pytest.mark.parametrize("trials", [1, 7, 10, 255, 65535])
def test_fixed_point_is_the_nearest_sixty_five_thousandth(trials):
    counts = np.unique(np.linspace(0, trials, 500).astype(np.uint16))
    fixed = ThetaCounts(counts, trials).fixed_point()
    exact = [min(max(Fraction(int(c), trials), Fraction(1, 100)), Fraction(99, 100)) for c in counts]
    assert max(abs(Fraction(int(f), 65536) - e) for f, e in zip(fixed, exact, strict=True)) < Fraction(
        1, 65536
    )
    inside = [(f, c) for f, c in zip(fixed, counts, strict=True) if 656 < f < 64880]
    assert all(2 * abs(Fraction(int(f)) - Fraction(65536 * int(c), trials)) <= 1 for f, c in inside)


def test_probabilities_are_rounded_to_the_nearest_count():
    theta = ThetaCounts.from_probabilities(np.linspace(0, 1, 31), trials=15)
    assert abs(theta.counts / 15 - np.linspace(0, 1, 31)).max() <= 1 / 30 + 1e-12


@pytest.mark.parametrize("bad", [np.array([np.nan]), np.array([-0.1]), np.array([1.1])])
def test_values_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="`probs`"):
        ThetaCounts.from_probabilities(bad)


def test_bad_masks_are_refused():
    posterior = MaskPosterior.start(4)
    with pytest.raises(TypeError, match="bool"):
        posterior.update([np.ones(4)])
    with pytest.raises(ValueError, match=r"shape \(4,\). Got \(3,\)"):
        posterior.update([np.ones(3, dtype=bool)])
    with pytest.raises(ValueError, match="empty"):
        posterior.update([])


def test_a_flat_posterior_without_masks_has_no_theta():
    with pytest.raises(ValueError, match="count a round first"):
        MaskPosterior.start(4).theta()
    assert MaskPosterior.start(4, prior=2).theta().probabilities().tolist() == [0.5] * 4


def test_counting_starts_again_before_a_round_that_sixteen_bits_would_not_hold():
    mask = np.ones(1, dtype=bool)
    for prior in (1, 6):
        full = 65_535 - 2 * (prior - 1)
        posterior = MaskPosterior(np.array([full - 2]), full - 2, rounds=1, prior=prior, reset_every=9)
        filled = posterior.update([mask, mask])
        assert (filled.theta().counts.tolist(), filled.rounds) == ([full + prior - 1], 2)
        again = filled.update([mask, ~mask, mask])
        assert (again.opened.tolist(), again.masks, again.rounds) == ([2], 3, 1)


def test_one_round_of_more_masks_than_sixteen_bits_hold_is_refused():
    with pytest.raises(ValueError, match="ask fewer clients"):
        MaskPosterior(np.array([65_536]), masks=65_536, rounds=1).theta()


@pytest.mark.parametrize("arguments", [{"prior": 0}, {"prior": 32_768}, {"reset_every": 0}])
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        MaskPosterior.start(4, **arguments)


@pytest.mark.parametrize(
    ("counts", "trials", "kind"),
    [
        (np.zeros(2, np.int64), 1, TypeError),
        (np.zeros((2, 1), np.uint16), 1, ValueError),
        (np.full(2, 3, np.uint16), 2, ValueError),
        (np.zeros(2, np.uint16), 0, ValueError),
        (np.zeros(2, np.uint16), 65536, ValueError),
    ],
)
def test_bad_counts_are_refused(counts, trials, kind):
    with pytest.raises(kind):
        ThetaCounts(counts, trials)
