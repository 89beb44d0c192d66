"""Who masks with whom: neighbours know each other, and keep their majority if a fifth of all is gone."""

from math import comb

import pytest

from lightning_fl_ext.secure.graph import Graph, degree, threshold_of


def neighbours(clients, seed):
    graph = Graph(clients, seed)
    return [graph.neighbours(i) for i in range(clients)]


@pytest.mark.parametrize("clients", [3, 4, 30, 31, 40, 101])
def test_neighbours_know_each_other_and_are_as_many_as_said(clients):
    found = neighbours(clients, b"seed" * 8)
    for i, of_one in enumerate(found):
        assert len(of_one) == degree(clients) == len(set(of_one))
        assert i not in of_one
        assert all(i in found[j] for j in of_one)


def test_another_seed_draws_other_neighbours():
    assert neighbours(40, bytes(32)) == neighbours(40, bytes(32)) != neighbours(40, b"1" * 32)


@pytest.mark.parametrize("clients", [31, 40, 100, 1000, 10_000])
def test_a_fifth_of_many_may_be_gone_or_collude(clients):
    gone, holders = clients // 5, degree(clients) + 1
    threshold = threshold_of(clients, -(-2 * clients // 3))

    def likely(least):
        """A bound on the chance that this many neighbours of any client are among the fifth."""
        ways = sum(
            comb(gone, k) * comb(clients - 1 - gone, holders - 1 - k)
            for k in range(least, min(gone, holders - 1) + 1)
        )
        return clients * ways / comb(clients - 1, holders - 1)

    assert likely(holders - threshold + 1) < 1e-6
    assert likely(threshold) < 1e-6


@pytest.mark.parametrize("clients", [3, 4, 30, 31, 100, 1000])
def test_no_one_can_be_given_both_kinds_of_shares_by_halves(clients):
    threshold = threshold_of(clients, clients // 2 + 1)
    assert 2 * threshold > degree(clients) + 1
