import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.wire.codes import (
    MASK_CODES,
    MaskCodeError,
    MaskKey,
    decode_mask,
    encode_mask,
    encode_theta,
    sample_mask,
    to_fixed_point,
)

CODES = list(MASK_CODES)
HEADER = 28


def entropy(p):
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


@pytest.mark.parametrize("code", ["packed", "dithered"])
@pytest.mark.parametrize("stratum", [None, (0, 3), (2, 3)])
def test_exact_codes_decode_to_the_sampled_mask(exchange_of, code, stratum):
    e = exchange_of(3000, stratum)
    mask = decode_mask(encode_mask(e.theta, e.public, e.key, code), e.public, e.key)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, sample_mask(e.theta, e.key))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), size=st.integers(0, 300), code=st.sampled_from(CODES))
def test_any_thetas_survive_the_round_trip(data, size, code):
    thetas = hnp.arrays(np.uint16, size, elements=st.integers(1, 65535))
    theta, public = data.draw(thetas), data.draw(thetas)
    key = MaskKey(run=data.draw(st.integers(0, 99)), round=1, model="m", client="c")
    mask = decode_mask(encode_mask(theta, public, key, code), public, key)
    assert mask.shape == (size,)
    if code != "random":
        assert np.array_equal(mask, sample_mask(theta, key))


def test_dithered_bits_are_near_the_entropy_of_flips_in_context():
    """Against the conditional entropy of the flips in 13 contexts, computed here in floating point."""
    rng = np.random.default_rng(0)
    size = 200_000
    logits = rng.normal(0, 2, size)
    public = to_fixed_point(np.clip(1 / (1 + np.exp(-logits)), 0.01, 0.99))
    theta = to_fixed_point(1 / (1 + np.exp(-(logits + rng.normal(0, 0.4, size)))))
    key = MaskKey(run=1, round=1, model="m", client="c")
    u = sample_uniforms(key, size)
    flips = (u < theta) ^ (u < public)
    log_odds = np.log2((np.arange(65536).clip(0.5)) / (65536 - np.arange(65536)))
    distance = log_odds[u] - log_odds[public]
    context = np.minimum(abs(distance) // 0.25, 12)
    bits = sum(
        (context == c).sum() * entropy(flips[context == c].mean())
        for c in np.unique(context)
        if 0 < flips[context == c].mean() < 1
    )
    assert 1.0 < 8 * (len(encode_mask(theta, public, key)) - HEADER) / bits < 1.04


def sample_uniforms(key, size):
    """The dither itself, read off `sample_mask` by bisection: [u < t] for 16 thresholds t."""
    u = np.zeros(size, dtype=np.uint16)
    for bit in reversed(range(16)):
        candidate = u | np.uint16(1 << bit)
        u = np.where(sample_mask(candidate, key), u, candidate)
    return u


@pytest.mark.parametrize("code", ["packed", "dithered"])
@pytest.mark.parametrize("stratified", [False, True])
def test_masks_are_independent_bernoulli_draws(code, stratified):
    """Frequencies, and independence across positions and rounds, over many decoded masks."""
    rounds, size = 1500, 48
    theta = to_fixed_point(np.linspace(0.02, 0.98, size))
    public = to_fixed_point(np.linspace(0.3, 0.7, size))
    draws = np.zeros((rounds, size))
    for r in range(rounds):
        key = MaskKey(1, r, "m", "a", (1, 3) if stratified else None)
        draws[r] = decode_mask(encode_mask(theta, public, key, code), public, key)
    p = theta / 65536
    z = (draws - p) / np.sqrt(p * (1 - p))
    frequency = z.sum(0) / np.sqrt(rounds)
    assert 17 < (frequency**2).sum() < 93  # chi squared, 48 degrees of freedom, 5 standard deviations
    correlation = (z.T @ z / np.sqrt(rounds))[np.triu_indices(size, 1)]
    assert abs(correlation).max() < 5
    assert abs((correlation**2).mean() - 1) < 0.25
    assert abs((z[1:] * z[:-1]).sum() / np.sqrt(z[1:].size)) < 5


def test_clients_draw_independently_without_a_stratum():
    theta = np.full(40_000, 20_000, dtype=np.uint16)
    a, b = (sample_mask(theta, MaskKey(1, 1, "m", client)) for client in "ab")
    p = theta[0] / 65536
    z = ((a - p) * (b - p)).mean() / (p * (1 - p)) * np.sqrt(theta.size)
    assert abs(z) < 5


@pytest.mark.parametrize("slots", [2, 7, 10])
def test_stratified_clients_open_every_parameter_as_often_as_it_can_be_to_the_nearest_mask(slots):
    theta = to_fixed_point(np.linspace(0.01, 0.99, 2000))
    keys = [MaskKey(1, 1, "m", f"client-{k}", (k, slots)) for k in range(slots)]
    opened = sum(sample_mask(theta, key).astype(int) for key in keys)
    expected = slots * (theta / 65536)
    assert (abs(opened - expected) < 1 + slots / 65536).all()
    rest = expected % 1
    assert np.mean((opened - expected) ** 2) == pytest.approx(np.mean(rest * (1 - rest)), rel=0.1)


@pytest.mark.parametrize("code", CODES)
def test_every_cut_and_every_added_byte_is_rejected(exchange_of, code):
    e = exchange_of(200)
    payload = encode_mask(e.theta, e.public, e.key, code)
    for length in range(len(payload)):
        with pytest.raises(MaskCodeError) as error:
            decode_mask(payload[:length], e.public, e.key)
        assert error.value.reason == "truncated"
    with pytest.raises(MaskCodeError) as error:
        decode_mask(payload + b"\0", e.public, e.key)
    assert error.value.reason == "too-long"


@pytest.mark.parametrize("code", CODES)
def test_every_flipped_bit_is_rejected(exchange_of, code):
    e = exchange_of(200)
    payload = encode_mask(e.theta, e.public, e.key, code)
    reasons = set()
    for bit in range(8 * len(payload)):
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MaskCodeError) as error:
            decode_mask(bytes(bad), e.public, e.key)
        reasons.add(error.value.reason)
    assert {"format", "version", "altered", "truncated", "too-long", "round", "model", "sender"} <= reasons


@settings(deadline=None, max_examples=100)
@given(body=st.binary(max_size=60), kind=st.integers(1, 3))
def test_a_forged_body_never_decodes(exchange_body, body, kind):
    e, wrap = exchange_body
    with pytest.raises(MaskCodeError):
        decode_mask(wrap(kind, e.key, body, b"forged"), e.public, e.key)


@pytest.fixture(scope="module")
def exchange_body():
    from types import SimpleNamespace

    from lightning_fl_ext.wire.codes.frame import wrap

    public = np.arange(1, 201, dtype=np.uint16) * np.uint16(300)
    return SimpleNamespace(key=MaskKey(1, 1, "m", "c"), public=public), wrap


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 4}, "round"),
        ({"model": "other"}, "model"),
        ({"run": 8}, "sender"),
        ({"client": "site-b"}, "sender"),
        ({"stratum": (0, 2)}, "sender"),
    ],
)
@pytest.mark.parametrize("code", CODES)
def test_a_payload_for_something_else_is_rejected(exchange, code, change, reason):
    payload = encode_mask(exchange.theta, exchange.public, exchange.key, code)
    with pytest.raises(MaskCodeError) as error:
        decode_mask(payload, exchange.public, replace(exchange.key, **change))
    assert error.value.reason == reason


@pytest.mark.parametrize("code", ["dithered", "random"])
def test_a_payload_is_rejected_where_the_server_has_another_theta(exchange, code):
    payload = encode_mask(exchange.theta, exchange.public, exchange.key, code)
    with pytest.raises(MaskCodeError) as error:
        decode_mask(payload, exchange.public[::-1].copy(), exchange.key)
    assert error.value.reason == "altered"


@pytest.mark.parametrize("code", CODES)
def test_a_payload_is_rejected_where_the_server_has_another_size(exchange, code):
    payload = encode_mask(exchange.theta, exchange.public, exchange.key, code)
    with pytest.raises(MaskCodeError):
        decode_mask(payload, exchange.public[:-100], exchange.key)


def test_theta_is_not_taken_for_a_mask(exchange):
    with pytest.raises(MaskCodeError) as error:
        decode_mask(encode_theta(exchange.counts, exchange.key), exchange.public, exchange.key)
    assert error.value.reason == "kind"


def test_the_error_is_the_packages_and_can_be_sent_to_another_process():
    error = pickle.loads(pickle.dumps(MaskCodeError("round", "expected 1, got 2")))
    assert isinstance(error, LightningFLError)
    assert (error.reason, str(error)) == ("round", "expected 1, got 2")


@pytest.mark.parametrize(
    ("theta", "public", "code", "kind", "match"),
    [
        (np.ones(3), np.ones(3, "u2"), "packed", TypeError, "`theta` must be uint16"),
        (np.ones(3, "u2"), np.ones(3), "packed", TypeError, "`public` must be uint16"),
        (np.ones(3, "u2"), np.ones(4, "u2"), "packed", ValueError, "one shape"),
        (np.ones((3, 1), "u2"), np.ones(3, "u2"), "packed", ValueError, "one-dimensional"),
        (np.zeros(3, "u2"), np.ones(3, "u2"), "packed", ValueError, "Got a 0"),
        (np.ones(3, "u2"), np.ones(3, "u2"), "zip", ValueError, ", ".join(MASK_CODES)),
    ],
)
def test_bad_arguments_are_named(theta, public, code, kind, match):
    with pytest.raises(kind, match=match):
        encode_mask(theta, public, MaskKey(1, 1, "m"), code)


def test_random_cannot_be_stratified(exchange_of):
    e = exchange_of(100, (0, 2))
    with pytest.raises(ValueError, match="cannot be stratified"):
        encode_mask(e.theta, e.public, e.key, "random")
