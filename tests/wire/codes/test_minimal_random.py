import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.wire.codes import (
    MaskCodeError,
    MaskKey,
    decode_mask,
    encode_mask,
    minimal_random,
    sample_mask,
    to_fixed_point,
)
from lightning_fl_ext.wire.codes.candidates import CANDIDATES, weigh
from lightning_fl_ext.wire.codes.minimal_random import (
    _blocks,
    _decode_numbers,
    _divergence,
    _encode_numbers,
    _gumbel,
    _log_odds,
    _unblock,
)
from lightning_fl_ext.wire.codes.rice import read_varint, write_varint
from lightning_fl_ext.wire.codes.wavelet import encode_integers

HEADER = 28


def masks(theta, public, rounds):
    for r in range(rounds):
        key = MaskKey(1, r, "m", "c")
        yield decode_mask(encode_mask(theta, public, key, "random"), public, key)


def reference_divergence(theta, public):
    """In bits, per parameter, in floating point."""
    q, p = theta / 65536, public / 65536
    return q * np.log2(q / p) + (1 - q) * np.log2((1 - q) / (1 - p))


def test_compiled_and_plain_loops_choose_the_same_masks(monkeypatch):
    p = np.random.default_rng(0).uniform(0.1, 0.9, 3000)
    theta, public, key = to_fixed_point(p * 0.9), to_fixed_point(p), MaskKey(1, 1, "m", "c")
    plain = encode_mask(theta, public, key, "random")
    asked = []
    monkeypatch.setattr(minimal_random, "COMPILED_FROM", 3000)
    monkeypatch.setattr(
        minimal_random, "weigh", lambda *a, compiled: asked.append(compiled) or weigh(*a, compiled)
    )
    assert encode_mask(theta, public, key, "random") == plain
    assert asked
    assert all(asked)


def test_into_how_many_parts_the_work_is_cut_leaves_no_trace(exchange, monkeypatch):
    payload = encode_mask(exchange.theta, exchange.public, exchange.key, "random")
    mask = decode_mask(payload, exchange.public, exchange.key)
    monkeypatch.setattr(minimal_random, "_AT_ONCE", 1)
    assert encode_mask(exchange.theta, exchange.public, exchange.key, "random") == payload
    assert np.array_equal(decode_mask(payload, exchange.public, exchange.key), mask)


def test_small_updates_arrive_almost_whole_on_average():
    """The mean over many draws lies between p and q, nearly at q, where a block's divergence is small."""
    size, rounds = 512, 400
    p = np.tile(np.linspace(0.2, 0.8, 64), size // 64)
    q = p + np.tile([0.06, -0.06], size // 2)
    theta, public = to_fixed_point(q), to_fixed_point(p)
    mean = np.mean(list(masks(theta, public, rounds)), axis=0)
    progress = ((mean - p) * np.sign(q - p)).mean() / 0.06
    assert 0.88 < progress < 1.02
    assert abs((mean - p)[q > p].mean() + (mean - p)[q < p].mean()) < 0.01


def test_without_an_update_the_masks_have_the_servers_law_and_cost_next_to_nothing():
    public = to_fixed_point(np.tile([0.1, 0.5, 0.9], 400))
    mean = np.mean(list(masks(public, public, 30)), axis=0).reshape(-1, 3).mean(0)
    assert mean == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    many = np.tile(public, 500)
    assert len(encode_mask(many, many, MaskKey(1, 1, "m", "c"), "random")) < HEADER + 10


@pytest.mark.parametrize("step", [0.001, 0.02, 0.1, 0.3])
def test_the_block_shrinks_as_the_update_grows(step):
    """Independent reference: the divergence in floating point, 3 bits of it to a block."""
    size = 20_000
    p = np.full(size, 0.5)
    theta, public = to_fixed_point(p + step), to_fixed_point(p)
    expected = min(3 / reference_divergence(theta, public).mean(), 4096)
    block, _ = read_varint(encode_mask(theta, public, MaskKey(1, 1, "m", "c"), "random")[HEADER:])
    assert block == pytest.approx(expected, abs=1, rel=0.01)


@pytest.mark.parametrize("far", [0.9, 0.99])
def test_the_dithered_code_is_sent_where_it_is_as_short(far):
    """Such as where a θ of 1 % became one of 99 %, which takes a block of its own."""
    theta, public = to_fixed_point(np.full(3000, far)), to_fixed_point(np.full(3000, 1 - far))
    key = MaskKey(1, 1, "m", "c")
    payload = encode_mask(theta, public, key, "random")
    assert payload == encode_mask(theta, public, key, "dithered")
    assert np.array_equal(decode_mask(payload, public, key), sample_mask(theta, key))


@pytest.mark.parametrize("block", [4096, 2048, 1000, 64, 3, 1])
@pytest.mark.parametrize("row", [64, 63, 49, 9])
def test_every_block_gets_its_share_of_each_column_of_a_layer(block, row):
    """Also where rows of 64 could be dealt to 32, 64 or 128 blocks, and a column always to the same."""
    layer = np.arange(2048 * row) % row
    blocks = _blocks((layer == 5).astype(np.uint8), block, 0)
    assert block / 2 <= blocks.shape[1] <= block
    shares = blocks.sum(axis=1)
    assert shares.max() - shares.min() <= 2


@given(st.integers(0, 300), st.integers(1, 40))
def test_parameters_that_are_dealt_to_blocks_come_back_in_order(size, block):
    values = np.arange(size) % 7 == 0
    blocks = _blocks(values, block, False)
    assert blocks.size
    assert blocks.shape[1] <= block
    assert np.array_equal(_unblock(blocks, size), values)


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), min_size=1))
def test_the_divergence_is_that_of_the_formula(pairs):
    theta, public = np.array(pairs, dtype=np.uint16).T
    expected = reference_divergence(theta, public).sum()
    divergence = _divergence(theta, public, _log_odds()[public]) / 2**32
    assert divergence == pytest.approx(expected, abs=1e-4 * len(pairs))


def test_small_numbers_are_chosen_more_often_and_cost_less_than_nine_bits():
    """Theis and Yosri: with noise in order, a number costs about the divergence, its logarithm and some."""
    size = 40_000
    p = np.random.default_rng(0).uniform(0.2, 0.8, size)
    theta, public = to_fixed_point(p + np.where(p < 0.5, 0.06, -0.06)), to_fixed_point(p)
    body = encode_mask(theta, public, MaskKey(1, 1, "m", "c"), "random")[HEADER:]
    block, rest = read_varint(body)
    count = -(-size // block) | 1
    numbers = _decode_numbers(rest, count)
    assert np.median(numbers) < CANDIDATES / 8
    assert 3 < 8 * len(rest) / count < 6


@given(st.lists(st.integers(0, CANDIDATES - 1)))
def test_numbers_come_back(numbers):
    numbers = np.array(numbers, dtype=np.uint16)
    assert _decode_numbers(_encode_numbers(numbers), numbers.size).tolist() == numbers.tolist()


@pytest.mark.parametrize("change", ["cut", "longer", "flipped padding"])
def test_what_is_no_list_of_numbers_is_refused(change):
    data = _encode_numbers(np.arange(CANDIDATES, dtype=np.uint16)[:307])
    changed = {"cut": data[:-1], "longer": data + b"\0", "flipped padding": data[:-1] + b"\xff"}[change]
    assert sum(max(int(n).bit_length() - 1, 0) for n in range(307)) % 8, "there is padding"
    with pytest.raises(MaskCodeError):
        _decode_numbers(changed, 307)


def test_numbers_of_more_candidates_than_there_are_are_refused():
    for length, bits in ((9, b"\xff"), (10, b"\xff\x80"), (10, b"\xff")):
        data = encode_integers(np.array([length], np.uint16), 4) + bits
        if length == 9:
            assert _decode_numbers(data, 1).tolist() == [CANDIDATES - 1]
        else:
            with pytest.raises(MaskCodeError):
                _decode_numbers(data, 1)


@pytest.mark.parametrize("block", [0, 7, 4097])
def test_blocks_of_a_size_that_is_never_written_are_refused(block):
    public, numbers = np.full(4000, 30_000, np.uint16), _encode_numbers(np.array([5, 6], np.uint16))
    key = MaskKey(1, 1, "m", "c")
    assert minimal_random.decode(write_varint(4096) + numbers, public, key).size == 4000
    with pytest.raises(MaskCodeError, match=f"blocks of {block} parameters"):
        minimal_random.decode(write_varint(block) + numbers, public, key)


def test_a_few_bytes_that_claim_the_smallest_blocks_cost_little_memory():
    public = np.full(200_000, 30_000, np.uint16)
    tracemalloc.start()
    minimal_random.decode(write_varint(8) + b"\0" * 4, public, MaskKey(1, 1, "m", "c"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * public.size


def test_gumbel_noise_draws_in_proportion_to_powers_of_two():
    weights = np.array([0, -1, -2, 1.5]) * 2**10
    noise = _gumbel()[np.random.default_rng(0).integers(0, 2**16, (200_000, 4))]
    drawn = np.bincount(np.argmax(weights + noise, axis=1), minlength=4) / 200_000
    expected = 2 ** (weights / 2**10)
    assert drawn == pytest.approx(expected / expected.sum(), abs=0.005)
