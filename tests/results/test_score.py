"""The score against the formula it is defined by, written out here."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.results import pseudo_sort_scoring_function, select_zeroeth_element

FLOATS = (np.float16, np.float32, np.float64, np.longdouble)
EXTENDED = (
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)


def formula(client_result):
    _, arrays, sample_count = client_result
    return np.sum([a[(0,) * a.ndim] for a in arrays if np.issubdtype(a.dtype, np.floating)]) + sample_count


def score(arrays, count=13):
    return pseudo_sort_scoring_function(("client", arrays, count))


def assert_same_bits(got, expected):
    assert type(got) is type(expected)
    used = 10 if isinstance(got, np.longdouble) else None  # the rest is padding
    assert np.asarray(got).tobytes()[:used] == np.asarray(expected).tobytes()[:used]


def published_example():
    np.random.seed(42)  # noqa: NPY002
    return [np.random.rand(*shape) for shape in ((10, 10), (10, 10), (5, 5), (5, 5))]  # noqa: NPY002


def test_published_example():
    assert float(score(published_example())) == pytest.approx(14.29199, abs=1e-5)


def test_strings_and_booleans_do_not_change_the_published_example():
    arrays = published_example()
    mixed = [np.array(["Cat", "Dog"]), *arrays[:2], np.array([True, False]), *arrays[2:]]
    assert_same_bits(score(mixed), score(arrays))
    assert float(score(mixed)) == pytest.approx(14.29199, abs=1e-5)


dtypes = st.sampled_from(
    [*map(np.dtype, FLOATS), np.dtype(">f4"), np.dtype(np.int64), np.dtype(np.bool_), np.dtype(np.complex64)]
)
some_array = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3))
)


@given(st.lists(some_array, max_size=6), st.integers(0, 10**6))
def test_equals_the_formula_to_the_bit_and_type_wherever_the_formula_is_defined(arrays, count):
    result = ("client", arrays, count)
    with np.errstate(all="ignore"):
        assert_same_bits(pseudo_sort_scoring_function(result), formula(result))


@pytest.mark.parametrize("dtype", FLOATS)
def test_many_arrays_of_one_dtype_are_summed_as_numpy_sums_them(dtype):
    arrays = [np.full((2, 2), value, dtype) for value in np.random.default_rng(0).normal(size=1000)]
    assert_same_bits(score(arrays), formula(("client", arrays, 13)))


def test_without_floating_arrays_the_score_is_the_count_as_a_float():
    assert_same_bits(score([np.arange(3), np.array(["Cat"])]), np.float64(13.0))
    assert_same_bits(score([]), np.float64(13.0))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2, 2)])
def test_an_array_of_size_zero_contributes_nothing(shape):
    arrays = [np.full((2,), 0.25, np.float32)]
    assert_same_bits(score([np.empty(shape), *arrays]), score(arrays))


@pytest.mark.parametrize("name", EXTENDED)
def test_bfloat16_and_float8_count_with_their_value(name):
    array = np.array([[0.5, 9.0]], dtype=getattr(ml_dtypes, name))
    assert_same_bits(score([array]), np.float32(13.5))


def test_float16_stays_float16_and_overflows_to_infinity():
    assert_same_bits(score([np.array([0.5], np.float16)]), np.float16(13.5))
    assert_same_bits(score([np.array([60000.0], np.float16)], count=60000), np.float16(np.inf))


@pytest.mark.parametrize(
    ("values", "expected"),
    [([np.nan], np.nan), ([np.inf], np.inf), ([-np.inf], -np.inf), ([np.inf, -np.inf], np.nan)],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_nan_and_infinity_give_a_score(values, expected, dtype):
    np.testing.assert_equal(float(score([np.array([value], dtype) for value in values])), expected)


def test_only_the_zeroeth_element_is_read():
    array = np.ones((3, 3))
    before = score([array])
    array.ravel()[1:] = np.nan
    assert score([array]) == before


def test_select_zeroeth_element_takes_index_zero_of_every_dimension_whatever_the_layout():
    array = np.arange(24).reshape(2, 3, 4)
    assert select_zeroeth_element(array) == 0
    assert select_zeroeth_element(array[::-1, ::-1, ::-1]) == 23
    assert select_zeroeth_element(np.asfortranarray(array)[1:]) == 12
    assert select_zeroeth_element(np.array(7.5)) == 7.5
    assert select_zeroeth_element(np.array(["Cat", "Dog"])) == "Cat"


def test_select_zeroeth_element_of_an_empty_array_is_an_index_error():
    with pytest.raises(IndexError):
        select_zeroeth_element(np.empty((2, 0)))
