"""Robust rules against their formulas in numpy, over all orders, dtypes and kinds of bad updates."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext import (
    CentredClipping,
    CoordinateMedian,
    GeometricMedian,
    KrumSelection,
    LightningFLError,
    TrimmedMean,
    digest,
)
from lightning_fl_ext.aggregation import InvalidUpdate
from lightning_fl_ext.aggregation.robust import rows as rows_module
from lightning_fl_ext.aggregation.robust.rule import middle_integer

RULES = {
    "median": CoordinateMedian(),
    "trimmed": TrimmedMean(0.2),
    "krum": KrumSelection(2),
    "multi-krum": KrumSelection(2, select=4),
    "geometric": GeometricMedian(iterations=60),
    "clipping": CentredClipping(1.5),
}
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def make(number=7, seed=0, shift=0.0):
    """A model of every dtype, and updates around it."""
    rng = np.random.default_rng(seed)
    like = {
        "w": np.zeros((3, 5), np.float32),
        "half": np.zeros(4, np.float16),
        "brain": np.zeros(3, ml_dtypes.bfloat16),
        "eighth": np.zeros(3, ml_dtypes.float8_e5m2),
        "double": np.zeros((), np.float64),
        "wave": np.zeros(2, np.complex64),
        "none": np.zeros((0, 3), np.float32),
        "steps": np.array(0),
        "small": np.zeros(3, np.uint8),
        "mask": np.zeros(6, bool),
    }

    def one():
        noise = {name: np.asarray(rng.normal(shift, 1, array.shape)) for name, array in like.items()}
        noise["wave"] = noise["wave"] + 1j * rng.normal(size=2)
        noise["steps"], noise["small"] = rng.integers(5, 99, ()), rng.integers(0, 255, 3)
        noise["mask"] = noise["mask"] > 0
        return {name: np.asarray(noise[name]).astype(array.dtype) for name, array in like.items()}

    return like, [one() for _ in range(number)]


def flat(update):
    """All floating numbers of an update, in float64."""
    parts = []
    for array in update.values():
        if array.dtype.kind == "c":
            parts += [array.real.ravel(), array.imag.ravel()]
        elif array.dtype.kind not in "biu":
            parts.append(array.astype(np.float64).ravel())
    return np.concatenate(parts)


def krum(points, malicious, select):
    squared = np.array([[np.sum((a - b) ** 2) for b in points] for a in points])
    scores = [
        np.sum(np.sort(np.delete(row, i))[: len(points) - malicious - 2]) for i, row in enumerate(squared)
    ]
    return points[np.argsort(scores)[:select]].mean(axis=0)


def weiszfeld(points, iterations):
    centre = points.mean(axis=0)
    for _ in range(iterations):
        weights = 1 / np.maximum(1e-6, np.linalg.norm(points - centre, axis=1))
        centre = weights @ points / weights.sum()
    return centre


def clipped(points, start, radius, iterations):
    centre = start
    for _ in range(iterations):
        steps = points - centre
        norms = np.linalg.norm(steps, axis=1, keepdims=True)
        centre = centre + (steps * np.minimum(1, radius / norms)).mean(axis=0)
    return centre


def trimmed(points, cut):
    return np.sort(points, axis=0)[cut : len(points) - cut].mean(axis=0)


REFERENCE = {
    "median": lambda points: np.median(points, axis=0),
    "trimmed": lambda points: trimmed(points, 1),
    "krum": lambda points: krum(points, 2, 1),
    "multi-krum": lambda points: krum(points, 2, 4),
    "geometric": lambda points: weiszfeld(points, 500),
    "clipping": lambda points: clipped(points, np.zeros(points.shape[1]), 1.5, 3),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("number", [7, 8])
def test_a_rule_is_its_formula(name, number):
    like, updates = make(number)
    like = {key: like[key] for key in ("w", "double", "wave")}
    updates = [{key: update[key] for key in like} for update in updates]
    got = RULES[name](like, updates)
    expected = REFERENCE[name](np.stack([flat(update) for update in updates]))
    np.testing.assert_allclose(flat(got), expected, rtol=2e-5, atol=1e-5 if name == "geometric" else 1e-6)


@pytest.mark.parametrize("name", RULES)
def test_dtypes_shapes_and_order_are_the_model_s(name):
    like, updates = make()
    got = RULES[name](like, updates)
    assert list(got) == list(like)
    assert all((got[k].dtype, got[k].shape) == (a.dtype, a.shape) for k, a in like.items())
    stack = {k: np.stack([update[k] for update in updates]) for k in ("steps", "small", "mask")}
    assert got["steps"] == np.median(stack["steps"])
    np.testing.assert_array_equal(got["small"], np.median(stack["small"], axis=0))
    np.testing.assert_array_equal(got["mask"], stack["mask"].mean(axis=0) > 0.5)


@pytest.mark.parametrize("name", RULES)
@given(seed=st.integers(0, 2**20), order=st.permutations(range(7)), equal=st.integers(0, 6))
def test_every_order_gives_the_same_bits(name, seed, order, equal):
    like, updates = make(seed=seed)
    updates[equal] = updates[0]  # equal updates, and equal scores
    for i, update in enumerate(updates):  # zeros of both signs, and one score for several
        update = updates[i] = dict(update)
        update["w"] = update["w"].copy()
        update["w"].flat[:3] = (0.0, -0.0 if i % 2 else 0.0, 1.0)
    assert digest(RULES[name](like, [updates[i] for i in order])) == digest(RULES[name](like, updates))


@pytest.mark.parametrize("name", RULES)
def test_all_orders_of_updates_with_one_pseudo_sort_score_give_the_same_bits(name):
    """What stands at index 0 is alike in all, as in a model whose first entries are frozen."""
    like = {"w": np.zeros(6)}
    rng = np.random.default_rng(1)
    updates = [{"w": np.append(1.0, rng.normal(size=5))} for _ in range(4)]
    updates += [updates[0], {"w": updates[1]["w"] * [1, -1, -1, -1, -1, -1]}, updates[2]]
    orders = list(itertools.permutations(range(7)))[::97]
    assert len({digest(RULES[name](like, [updates[i] for i in order])) for order in orders}) == 1


@pytest.mark.parametrize("name", RULES)
def test_blocks_leave_no_trace(name, monkeypatch):
    """Larger than a block, with an array that ends in the middle of one."""
    rng = np.random.default_rng(2)
    like = {"w": np.zeros(3 * rows_module.BLOCK + 5, np.float32), "b": np.zeros(3, np.float32)}
    updates = [{k: rng.normal(size=a.shape).astype(np.float32) for k, a in like.items()} for _ in range(7)]
    got = RULES[name](like, updates)
    expected = REFERENCE[name](np.stack([flat(update) for update in updates]))
    np.testing.assert_allclose(flat(got), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("attack", ["far", "opposite", "huge", "one place", "together"])
def test_two_bad_updates_of_ten_do_not_lead_away(name, attack):
    """Honest updates lie around 1, each number with deviation 1; the mean of all ends far off or at 0."""
    like, honest = make(8, shift=1.0)
    like = {key: like[key] for key in ("w", "double")}
    honest = [{key: update[key] for key in like} for update in honest]

    def bad(i):
        value = {"far": 1e3 * (-1) ** i, "opposite": -30.0, "huge": 1e30, "together": 40.0}.get(attack, 0.0)
        update = {key: np.full_like(array, value) for key, array in like.items()}
        if attack == "one place":
            update["w"].flat[3 + i] = 1e6
        return update

    got = flat(RULES[name](like, [*honest, bad(0), bad(1)]))
    rule_s_own = flat(RULES[name](like, honest)) if name != "trimmed" else flat(honest[0]) * 0 + 1
    assert np.linalg.norm(got - rule_s_own) < 6
    assert np.abs(got).max() < 6


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_median_is_exact_in_every_dtype(dtype):
    rng = np.random.default_rng(3)
    like = {"w": np.zeros(2000, dtype)}
    for number in (3, 4, 9, 10):
        stack = (rng.normal(size=(number, 2000)) * 10.0 ** rng.integers(-3, 3, 2000)).astype(dtype)
        got = CoordinateMedian()(like, [{"w": row} for row in stack])["w"]
        expected = np.median(stack.astype(np.float64), axis=0)
        if dtype is ml_dtypes.bfloat16:  # from float64 it would round twice; ties apart that is the same
            close = np.abs(got.astype(np.float64) - expected) <= np.abs(expected) * 2.0**-8
            assert close.all()
        else:
            np.testing.assert_array_equal(got, expected.astype(dtype))


def test_more_rows_than_a_network_takes_are_ranked_too():
    stack = np.random.default_rng(4).normal(size=(101, 50)).astype(np.float32)
    updates = [{"w": row} for row in stack]
    like = {"w": np.zeros(50, np.float32)}
    np.testing.assert_array_equal(CoordinateMedian()(like, updates)["w"], np.median(stack, axis=0))
    got = TrimmedMean(0.1)(like, updates)["w"]
    np.testing.assert_allclose(got, trimmed(stack.astype(np.float64), 10), rtol=1e-6)


def test_krum_gives_one_of_the_updates_and_equal_scores_go_by_digest():
    like, updates = make()
    chosen = KrumSelection(2)(like, updates)
    assert any(np.array_equal(chosen["w"], update["w"]) for update in updates)
    pair = [{"w": np.array([v])} for v in (0.0, 1.0, 10.0, 30.0, 60.0)]  # f=1, n=5: two neighbours each
    assert KrumSelection(1)({"w": np.zeros(1)}, pair)["w"] == 1.0
    square = [{"w": np.array(v)} for v in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [50.0, 0.0])]
    first = min(square[:4], key=digest)["w"]
    for order in itertools.permutations(range(5)):
        got = KrumSelection(1)({"w": np.zeros(2)}, [square[i] for i in order])["w"]
        np.testing.assert_array_equal(got, first)


def test_distances_of_updates_far_from_zero_do_not_cancel():
    """Rows' products would: 1e8 squared has no room for a distance of 1."""
    like = {"w": np.zeros(2)}
    updates = [{"w": np.array([1e8, 1e8 + d])} for d in (0.0, 0.25, 0.5, 0.75, 9.0)]
    np.testing.assert_array_equal(KrumSelection(1)(like, updates)["w"], updates[1]["w"])


def test_the_geometric_median_minimises_the_sum_of_distances():
    like = {"double": np.zeros(20)}
    rng = np.random.default_rng(5)
    points = rng.normal(size=(9, 20))
    got = GeometricMedian(iterations=200)(like, [{"double": p} for p in points])["double"]
    least = np.linalg.norm(points - got, axis=1).sum()
    for _ in range(20):
        other = got + rng.normal(0, 1e-3, 20)
        assert np.linalg.norm(points - other, axis=1).sum() > least


def test_a_geometric_median_on_top_of_an_update_is_that_update():
    like = {"w": np.zeros(2)}
    cross = [{"w": np.array(v)} for v in ([0.0, 0.0], [3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0])]
    np.testing.assert_allclose(GeometricMedian()(like, cross)["w"], [0, 0], atol=1e-12)


def test_clipping_moves_the_model_by_its_radius_at_most():
    like = {"w": np.full(3, 5.0)}
    updates = [{"w": np.full(3, 1e30)}] * 3
    for iterations in (1, 2):
        got = CentredClipping(0.5, iterations)(like, updates)["w"]
        assert np.linalg.norm(got - like["w"]) == pytest.approx(0.5 * iterations)


def test_clipping_of_updates_within_the_radius_is_their_mean():
    like, updates = make(6)
    like = {"w": like["w"]}
    got = CentredClipping(1e6, 1)(like, [{"w": u["w"]} for u in updates])["w"]
    np.testing.assert_allclose(got, np.mean([u["w"] for u in updates], axis=0), rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
def test_the_median_of_integers_is_rounded_half_to_even_and_never_overflows(numbers):
    ordered = sorted(numbers)
    low, high = ordered[(len(numbers) - 1) // 2], ordered[len(numbers) // 2]
    floor, rest = divmod(low + high, 2)
    expected = floor + (rest and floor % 2)
    assert middle_integer(np.array(numbers, dtype=np.int64)) == expected


def test_a_tie_of_bools_is_false():
    stack = np.array([[True, True], [True, False], [False, False], [False, True]])
    assert middle_integer(stack).tolist() == [False, False]


@pytest.mark.parametrize(
    ("rule", "asked", "says"),
    [
        (CoordinateMedian(), 2, "at least 3 clients"),
        (GeometricMedian(), 2, "at least 3 clients"),
        (CentredClipping(1.0), 2, "at least 3 clients"),
        (TrimmedMean(0.1), 9, r"TrimmedMean\(fraction=0.1\) trims nobody of 9 clients.*at least 10"),
        (TrimmedMean(0.3), 3, "trims nobody of 3"),
        (KrumSelection(2), 6, "at least 7 clients"),
        (KrumSelection(1, select=5), 5, "at least 6 clients"),
    ],
    ids=str,
)
def test_too_few_clients_for_a_rule_are_refused_by_its_name(rule, asked, says):
    with pytest.raises(LightningFLError, match=says):
        rule.least(asked)
    assert rule.least(asked + 1) <= asked + 1


def test_a_fraction_counts_those_asked_whoever_dropped_out():
    like = {"w": np.zeros(1)}
    updates = [{"w": np.array([float(v)])} for v in (900, 800, 2, 1, 3, 4, 5)]
    assert TrimmedMean(0.2)(like, updates, asked=10)["w"] == 4.0  # two at either end
    assert TrimmedMean(0.2)(like, updates)["w"] > 100  # one of seven
    with pytest.raises(LightningFLError, match="at least 5 updates of 10 clients asked, got 4"):
        TrimmedMean(0.2)(like, updates[:4], asked=10)


@pytest.mark.parametrize("fraction", [0.29, 0.07, 0.35])
def test_a_fraction_of_a_hundred_is_what_it_says(fraction):
    assert TrimmedMean(fraction).least(100) == 2 * round(100 * fraction) + 1


@pytest.mark.parametrize(
    ("make_rule", "error"),
    [
        (lambda: TrimmedMean(0.5), ValueError),
        (lambda: TrimmedMean(0.0), ValueError),
        (lambda: TrimmedMean(True), TypeError),
        (lambda: TrimmedMean(float("nan")), ValueError),
        (lambda: TrimmedMean(None), TypeError),
        (lambda: KrumSelection(0), ValueError),
        (lambda: KrumSelection(1.5), TypeError),
        (lambda: KrumSelection(1, select=0), ValueError),
        (lambda: GeometricMedian(0), ValueError),
        (lambda: GeometricMedian(smoothing=0.0), ValueError),
        (lambda: CentredClipping(-1.0), ValueError),
        (lambda: CentredClipping(float("inf")), ValueError),
        (lambda: CentredClipping(1.0, iterations=0), ValueError),
    ],
)
def test_arguments_out_of_range_are_refused(make_rule, error):
    with pytest.raises(error):
        make_rule()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, np.nan) for name in RULES),
        *((name, np.inf) for name in RULES if name not in ("median", "trimmed")),
    ],
)
def test_values_that_are_not_finite_are_refused(name, value):
    like = {"w": np.zeros(3, np.float32)}
    updates = [{"w": np.full(3, v, np.float32)} for v in (1, 2, 3, 4, 5, 6, value)]
    with pytest.raises(InvalidUpdate, match="finite"):
        RULES[name](like, updates)


@pytest.mark.parametrize("name", ["median", "trimmed"])
def test_infinity_is_an_extreme_among_ranks(name):
    updates = [{"w": np.array([v])} for v in (1.0, 2.0, 3.0, 4.0, np.inf)]
    assert RULES[name]({"w": np.zeros(1)}, updates)["w"] == 3.0
    with pytest.raises(InvalidUpdate, match="finite"):
        RULES[name]({"w": np.zeros(1)}, [*updates[:2], *updates[4:] * 3])


@pytest.mark.parametrize("name", RULES)
def test_updates_of_another_structure_are_refused(name):
    like, updates = make()
    with pytest.raises(InvalidUpdate, match="update 6, array `w`"):
        RULES[name](like, [*updates[:6], {**updates[6], "w": np.zeros(2, np.float32)}])
    with pytest.raises(LightningFLError, match="nothing to aggregate"):
        RULES[name](like, [])


def test_a_model_without_floating_arrays_is_aggregated():
    like = {"steps": np.array(0)}
    for rule in RULES.values():
        assert rule(like, [{"steps": np.array(v)} for v in (1, 2, 3, 4, 5, 9, 90)])["steps"] == 4
