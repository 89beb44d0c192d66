"""The Dirichlet split: a partition, skewed as asked, the same for the same arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext import dirichlet_split


@given(
    st.lists(st.integers(-2, 5), min_size=12, max_size=60),
    st.integers(1, 6),
    st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
    st.integers(0, 5),
    st.integers(0, 2),
)
def test_every_example_goes_to_exactly_one_client(labels, num_clients, alpha, seed, least):
    shares = dirichlet_split(labels, num_clients, alpha=alpha, seed=seed, min_examples=least)
    assert len(shares) == num_clients
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(labels)))
    assert min(map(len, shares)) >= least
    for share in shares:
        assert share.dtype == np.int64
        assert np.all(np.diff(share) > 0)


LABELS = np.random.default_rng(0).integers(0, 10, 5000)


def label_shares(alpha, seed=0):
    """Client's part of each label, shape (clients, labels)."""
    shares = dirichlet_split(LABELS, 8, alpha=alpha, seed=seed)
    counts = np.array([np.bincount(LABELS[share], minlength=10) for share in shares])
    return counts / counts.sum(axis=0)


def test_the_same_arguments_give_the_same_split_and_other_seeds_another():
    first, again, other = (dirichlet_split(LABELS, 8, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_global_random_state_is_not_used():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    dirichlet_split(LABELS, 8)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("alpha", [0.3, 1.0, 10.0])
def test_shares_of_a_label_have_the_variance_of_the_dirichlet_distribution(alpha):
    # Var of one of K components: (K - 1) / (K^2 (K alpha + 1)).
    drawn = np.concatenate([label_shares(alpha, seed).ravel() for seed in range(40)])
    expected = 7 / (64 * (8 * alpha + 1))
    assert drawn.mean() == pytest.approx(1 / 8)
    assert drawn.var() == pytest.approx(expected, rel=0.15)


def test_large_alpha_gives_equal_shares_and_small_alpha_one_client_per_label():
    assert np.all(np.abs(label_shares(1e6) - 1 / 8) < 0.01)
    assert np.all(label_shares(1e-4).max(axis=0) > 0.9)


def test_examples_of_a_label_are_shuffled_before_they_are_dealt():
    share = dirichlet_split(np.zeros(1000, int), 2, alpha=1e6)[0]
    assert not np.array_equal(share, np.arange(len(share)))


def test_poor_clients_are_filled_up_from_the_richest():
    shares = dirichlet_split(np.zeros(100, int), 10, alpha=1e-3, min_examples=5)
    assert sorted(map(len, shares))[:9] == [5] * 9


@pytest.mark.parametrize(
    ("labels", "num_clients", "options", "word"),
    [
        ([[0, 1]], 1, {}, "`labels` must be one-dimensional"),
        ([0, 1], 0, {}, "`num_clients` must be at least 1"),
        ([0, 1], 1, {"alpha": 0.0}, "`alpha` must be positive"),
        ([0, 1], 1, {"alpha": -1.0}, "`alpha` must be positive"),
        ([0, 1], 1, {"alpha": float("nan")}, "`alpha` must be positive"),
        ([0, 1], 2, {"alpha": float("inf")}, "`alpha` must be positive"),
        ([0, 1], 3, {}, "2 examples cannot give 3 clients"),
        ([0, 1, 2], 2, {"min_examples": 2}, "3 examples cannot give 2 clients"),
    ],
)
def test_impossible_splits_are_refused(labels, num_clients, options, word):
    with pytest.raises(ValueError, match=word):
        dirichlet_split(labels, num_clients, **options)
