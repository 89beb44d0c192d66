"""A network sorts: shown for every number of rows by the 0-1 principle, or against numpy."""

import itertools

import numpy as np
import pytest

from lightning_fl_ext.aggregation.robust.sorting_network import NETWORK_UP_TO, network, sorted_rows


@pytest.mark.parametrize("size", range(1, 11))
def test_every_column_of_zeros_and_ones_is_sorted(size):
    """A network that sorts all of these sorts everything (Knuth, TAOCP vol. 3, 5.3.4, theorem Z)."""
    columns = np.array(list(itertools.product((0.0, 1.0), repeat=size))).T
    for start, stop in ((0, size), ((size - 1) // 2, size // 2 + 1), (size - 1, size)):
        got = sorted_rows(list(columns.copy()), start, stop)
        np.testing.assert_array_equal(np.stack(got), np.sort(columns, axis=0)[start:stop])


@pytest.mark.parametrize("size", [17, NETWORK_UP_TO, NETWORK_UP_TO + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_numpy_s(size, dtype):
    rows = np.random.default_rng(size).integers(-50, 50, (size, 300)).astype(dtype)
    expected = np.sort(rows, axis=0)
    for start, stop in ((0, size), (size // 2, size // 2 + 1), (3, size - 3)):
        got = np.stack(sorted_rows(list(rows.copy()), start, stop))
        np.testing.assert_array_equal(got, expected[start:stop])
        assert got.dtype == dtype


def test_what_a_median_does_not_need_is_not_compared():
    assert len(network(10, 4, 6)) < len(network(10, 0, 10))
    assert sum(c.needs_first + c.needs_second for c in network(10, 4, 6)) < 2 * len(network(10, 4, 6))
