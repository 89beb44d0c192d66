import numpy as np
import pytest

from lightning_fl_ext.wire.codes import MaskKey, candidates
from lightning_fl_ext.wire.codes.candidates import CANDIDATES, Lines, weigh
from lightning_fl_ext.wire.codes.fixed_point import random_bits


def draw(blocks, parameters, seed=0):
    return Lines.draw(random_bits(MaskKey(seed, 1, "m"), "candidates"), (blocks, parameters))


def all_candidates(lines, p):
    """Shape (CANDIDATES, blocks, parameters)."""
    return np.stack([lines.masks(p, np.full(len(p), k, np.uint16)) for k in range(CANDIDATES)])


def test_a_candidate_is_the_top_half_of_its_line_against_theta():
    lines, p = draw(2, 3), np.array([[1, 20_000, 65_535]] * 2, np.uint16)
    k = np.array([3, 511], np.uint16)
    expected = [
        [
            (int(lines.slopes[b, i]) * int(k[b]) + int(lines.offsets[b, i])) % 2**32 // 2**16 < int(p[b, i])
            for i in range(3)
        ]
        for b in range(2)
    ]
    assert lines.masks(p, k).tolist() == expected


@pytest.mark.parametrize("distance", [1, 2, 3, 64, 256])
def test_every_candidate_has_the_servers_law_and_any_two_are_uncorrelated(distance):
    """Distances that are powers of two are where lines over integers of too few bits would fail."""
    size = 200_000
    p = np.resize(np.array([3277, 32_768, 60_000], np.uint16), (1, size))
    lines, probs = draw(1, size, distance), np.array([3277, 32_768, 60_000]) / 2**16
    first, second = (lines.masks(p, np.array([k], np.uint16))[0] for k in (5, 5 + distance))
    for i, prob in enumerate(probs):
        a, b = first[i::3], second[i::3]
        assert a.mean() == pytest.approx(prob, abs=0.006)
        assert b.mean() == pytest.approx(prob, abs=0.006)
        assert (a & b).mean() == pytest.approx(prob**2, abs=0.006)
        assert (a[1:] & a[:-1]).mean() == pytest.approx(prob**2, abs=0.006), "nor are two parameters"


def test_two_numbers_of_one_parameter_take_all_pairs_of_values_equally_often():
    """Exactly, on a small model of it: 2-universal with 8 bits where the index has 3 and the result 4."""
    word, out, first, second = 2**8, 2**4, 1, 5
    slopes, offsets = np.mgrid[:word, :word]
    pairs = [(slopes * k + offsets) % word // (word // out) for k in (first, second)]
    counts = np.bincount((pairs[0] * out + pairs[1]).ravel(), minlength=out * out)
    assert set(counts.tolist()) == {word * word // (out * out)}


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_are_the_sums_over_open_parameters(compiled):
    rng = np.random.default_rng(0)
    lines, p = draw(4, 50), rng.integers(1, 2**16, (4, 50)).astype(np.uint16)
    ratios = rng.integers(-(2**15), 2**15, (4, 50)).astype(np.int32)
    expected = (all_candidates(lines, p) * ratios).sum(axis=2).T
    assert weigh(lines, p, ratios, compiled).tolist() == expected.tolist()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_largest_sum_neither_wraps_around_nor_loses_its_last_bit(compiled):
    shape = (1, 2**12)
    p, ratios = np.full(shape, 65_535, np.uint16), np.full(shape, -(2**15), np.int32)
    ratios[0, 7] += 1
    lines = Lines(np.zeros(shape, np.uint32), np.zeros(shape, np.uint32))
    assert weigh(lines, p, ratios, compiled).tolist() == [[1 - 2**27] * CANDIDATES]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_number_that_equals_theta_is_closed(compiled):
    p = np.array([[20_000, 20_000]], np.uint16)
    at, under = 20_000 * 2**16, 20_000 * 2**16 - 1
    lines = Lines(np.zeros((1, 2), np.uint32), np.array([[at, under]], np.uint32))
    assert lines.masks(p, np.array([9], np.uint16)).tolist() == [[False, True]]
    assert weigh(lines, p, np.array([[10, 1]], np.int32), compiled).tolist() == [[1] * CANDIDATES]


@pytest.mark.parametrize("compiled", [False, True])
def test_numba_is_asked_where_it_may_be(monkeypatch, compiled):
    asked = []
    monkeypatch.setattr(candidates, "_compiled", lambda: asked.append(True))
    weigh(draw(1, 2), np.full((1, 2), 9, np.uint16), np.ones((1, 2), np.int32), compiled)
    assert bool(asked) == compiled
