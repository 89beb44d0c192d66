"""The least distance that counts in a geometric median."""

import numpy as np
import pytest

from lightning_fl_ext import GeometricMedian


def weiszfeld(points, smoothing, iterations):
    """Algorithm 2 of arXiv:1912.13445, from the coordinate median, while the sum of distances falls."""
    centre, before = np.median(points, axis=0), np.inf
    for _ in range(iterations):
        distances = np.linalg.norm(points - centre, axis=1)
        if not distances.sum() < before:
            break
        before = distances.sum()
        weights = 1 / np.maximum(distances, smoothing)
        centre = weights @ points / weights.sum()
    return centre


@pytest.mark.parametrize("smoothing", [1e-6, 0.3, 1.0])
def test_distances_below_the_smoothing_count_as_much_as_it(smoothing):
    points = np.random.default_rng(5).normal(size=(7, 3)) * 0.5
    rule = GeometricMedian(iterations=4, smoothing=smoothing)
    found = rule({"w": np.zeros(3)}, [{"w": point} for point in points])["w"]
    np.testing.assert_allclose(found, weiszfeld(points, smoothing, 4), rtol=1e-12)


def test_updates_closer_than_the_smoothing_have_their_mean():
    points = np.random.default_rng(6).normal(size=(5, 3))
    found = GeometricMedian(smoothing=100.0)({"w": np.zeros(3)}, [{"w": point} for point in points])["w"]
    np.testing.assert_allclose(found, points.mean(0), rtol=1e-12)
