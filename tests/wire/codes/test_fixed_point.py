import math

import numpy as np
import pytest

from lightning_fl_ext.wire.codes import MaskKey, sample_mask, to_fixed_point
from lightning_fl_ext.wire.codes.fixed_point import log2, random_bits, uniforms


def test_fixed_point_is_within_two_to_the_minus_sixteen_and_never_certain():
    probs = np.linspace(0, 1, 10_001)
    fixed = to_fixed_point(probs)
    assert abs(fixed / 65536 - probs).max() <= 2**-16
    assert (fixed.min(), fixed.max()) == (1, 65535)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_values_that_are_no_probabilities_are_refused(bad):
    with pytest.raises(ValueError, match="must lie in"):
        to_fixed_point(np.array([0.5, bad]))


@pytest.mark.parametrize("fraction_bits", [8, 16])
def test_log2_is_that_of_floating_point(fraction_bits):
    values = np.r_[np.arange(1, 70_000), 2**31 - 1, 2**31, 2**32 - 1].astype(np.uint64)
    expected = [math.log2(int(v)) * 2**fraction_bits for v in values]
    error = np.array(expected) - log2(values, fraction_bits)
    assert error.min() >= 0
    assert error.max() < 1.01


def test_uniforms_are_sixteen_bits_of_the_raw_stream_low_bits_first():
    key = MaskKey(1, 2, "m", "c")
    raw = int(random_bits(key, "x").random_raw(1)[0])
    expected = [raw >> 16 * i & 0xFFFF for i in range(4)]
    assert uniforms(random_bits(key, "x"), 3).tolist() == expected[:3]


def test_sixteen_uniforms_are_one_step_of_the_counter():
    generator = random_bits(MaskKey(1, 2, "m"), "x")
    stream = uniforms(random_bits(MaskKey(1, 2, "m"), "x"), 160)
    generator.advance(3)
    assert np.array_equal(uniforms(generator, 16), stream[48:64])
    generator.advance(2)
    assert np.array_equal(uniforms(generator, 16), stream[96:112])


def test_an_entry_is_open_exactly_where_its_uniform_is_below_theta():
    key = MaskKey(1, 2, "m", "c")
    u = uniforms(random_bits(key, "dither"), 500).clip(1, 65534)
    assert not sample_mask(u, key).any()
    assert sample_mask(u + np.uint16(1), key).all()
