from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.aggregation.mask_posterior import ThetaCounts
from lightning_fl_ext.wire.codes import MaskCodeError, MaskKey, decode_theta, encode_mask, encode_theta

KEY = MaskKey(run=7, round=3, model="m")


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=st.integers(0, 200), trials=st.sampled_from([1, 2, 10, 15, 16, 255, 65535]))
def test_counts_survive_the_round_trip(data, size, trials):
    counts = data.draw(hnp.arrays(np.uint16, size, elements=st.integers(0, trials)))
    theta = decode_theta(encode_theta(ThetaCounts(counts, trials), KEY), size, KEY)
    assert theta.trials == trials
    assert np.array_equal(theta.counts, counts)


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_the_length_is_within_five_percent_of_the_entropy(spread):
    rng = np.random.default_rng(0)
    probs = 1 / (1 + np.exp(-rng.normal(0, spread, 150_000)))
    counts = rng.binomial(10, probs).astype(np.uint16)
    p = np.bincount(counts) / counts.size
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
    bits = 8 * len(encode_theta(ThetaCounts(counts, 10), KEY)) / counts.size
    assert entropy < bits < 1.05 * entropy
    assert bits < 4


@pytest.mark.parametrize("trials", [10, 15])
def test_the_worst_counts_cost_no_more_than_four_bits_and_a_header(trials):
    counts = np.random.default_rng(0).integers(0, trials + 1, 20_000).astype(np.uint16)
    assert len(encode_theta(ThetaCounts(counts, trials), KEY)) <= 20_000 // 2 + 28 + 1 + 2 * trials + 8


def test_every_flipped_bit_cut_and_addition_is_rejected():
    theta = ThetaCounts((np.arange(60) * 7 % 11).astype(np.uint16), 10)
    payload = encode_theta(theta, KEY)
    for bit in range(8 * len(payload)):
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MaskCodeError):
            decode_theta(bytes(bad), 60, KEY)
    for bad in [payload[:n] for n in range(len(payload))] + [payload + b"\0"]:
        with pytest.raises(MaskCodeError):
            decode_theta(bad, 60, KEY)


@pytest.mark.parametrize(("change", "reason"), [({"round": 4}, "round"), ({"model": "x"}, "model")])
def test_theta_for_something_else_is_rejected(change, reason):
    payload = encode_theta(ThetaCounts(np.ones(9, np.uint16), 3), KEY)
    with pytest.raises(MaskCodeError) as error:
        decode_theta(payload, 9, replace(KEY, **change))
    assert error.value.reason == reason


def test_theta_for_another_number_of_parameters_is_rejected():
    payload = encode_theta(ThetaCounts((np.arange(50) % 4).astype(np.uint16), 3), KEY)
    for size in (0, 49, 51, 5000):
        with pytest.raises(MaskCodeError):
            decode_theta(payload, size, KEY)


def test_a_mask_is_not_taken_for_theta():
    public = np.full(9, 30_000, dtype=np.uint16)
    with pytest.raises(MaskCodeError) as error:
        decode_theta(encode_mask(public, public, KEY), 9, KEY)
    assert error.value.reason == "kind"


@settings(deadline=None, max_examples=100)
@given(body=st.binary(max_size=60))
def test_a_forged_body_never_decodes(body):
    from lightning_fl_ext.wire.codes.frame import wrap

    with pytest.raises(MaskCodeError):
        decode_theta(wrap(16, KEY, body, b"forged"), 40, KEY)
