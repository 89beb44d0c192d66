import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.wire.codes import MaskCodeError
from lightning_fl_ext.wire.codes.rice import decode_bits, encode_bits, read_varint, write_varint


@settings(deadline=None, max_examples=100)
@given(data=st.data(), size=st.integers(0, 400), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_bits_survive_the_round_trip_and_leave_what_follows(data, size, dtype):
    contexts = data.draw(hnp.arrays(dtype, size, elements=st.integers(0, 5)))
    bits = data.draw(hnp.arrays(np.bool_, size))
    decoded, rest = decode_bits(encode_bits(bits, contexts) + b"next", contexts)
    assert np.array_equal(decoded, bits)
    assert rest == b"next"


@pytest.mark.parametrize("frequency", [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.38, 0.45, 0.5, 0.7, 0.99])
def test_the_length_is_within_five_percent_of_the_entropy(frequency):
    bits = np.random.default_rng(0).random(400_000) < frequency
    p = bits.mean()
    entropy = -(p * math.log2(p) + (1 - p) * math.log2(1 - p)) * bits.size
    assert 0.999 < 8 * len(encode_bits(bits, np.zeros(bits.size, np.uint8))) / entropy < 1.05


def test_the_layout_is_counts_then_low_parts_then_unary():
    """By hand: 21 zeros and a one, k = 4: gap 21 = 0101 low bits (lowest first 1010), high part 1 (01)."""
    bits = np.zeros(24, dtype=np.bool_)
    bits[21] = True
    assert encode_bits(bits, np.zeros(24, np.uint8)) == bytes([1, 0b10100000, 0b01000000])


def test_a_context_of_equal_bits_costs_its_count_alone():
    for bit in (False, True):
        assert len(encode_bits(np.full(100, bit), np.zeros(100, np.uint8))) == 1


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=40), size=st.integers(0, 100))
def test_arbitrary_data_is_decoded_or_refused(data, size):
    contexts = (np.arange(size) % 3).astype(np.uint8)
    try:
        bits, rest = decode_bits(data, contexts)
    except MaskCodeError:
        return
    assert bits.shape == (size,)
    assert data.endswith(rest)


@pytest.mark.parametrize(
    "bad",
    [
        b"",  # no count
        bytes([25]),  # more ones than bits
        bytes([1]),  # no low part
        bytes([1, 0b10101000, 0b01000000]),  # padding
        bytes([1, 0b10100000, 0b00000000]),  # no end of the run
        bytes([1, 0b11110000, 0b00010000]),  # a run of 63 in 24 bits
        bytes([0x81] * 6),  # a number without an end
    ],
)
def test_inconsistent_data_is_refused(bad):
    with pytest.raises(MaskCodeError):
        decode_bits(bad, np.zeros(24, np.uint8))


@given(value=st.integers(0, 2**35 - 1))
def test_numbers_survive_the_round_trip(value):
    assert read_varint(write_varint(value) + b"x") == (value, b"x")
