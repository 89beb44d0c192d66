import numpy as np
import pytest

from lightning_fl_ext.wire.codes import MaskKey, decode_mask, encode_mask, to_fixed_point
from lightning_fl_ext.wire.codes.minimal_random import _gumbel

HEADER = 28


def masks(theta, public, rounds):
    for r in range(rounds):
        key = MaskKey(1, r, "m", "c")
        yield decode_mask(encode_mask(theta, public, key, "random"), public, key)


def test_small_updates_arrive_almost_whole_on_average():
    """The mean over many draws lies between p and q, nearly at q, where a block's divergence is small."""
    size, rounds = 512, 400
    p = np.tile(np.linspace(0.2, 0.8, 64), size // 64)
    q = p + np.tile([0.06, -0.06], size // 2)
    theta, public = to_fixed_point(q), to_fixed_point(p)
    mean = np.mean(list(masks(theta, public, rounds)), axis=0)
    progress = ((mean - p) * np.sign(q - p)).mean() / 0.06
    assert 0.85 < progress < 1.05
    assert abs((mean - p)[q > p].mean() + (mean - p)[q < p].mean()) < 0.01


def test_without_an_update_the_masks_have_the_servers_law():
    public = to_fixed_point(np.tile([0.1, 0.5, 0.9], 400))
    mean = np.mean(list(masks(public, public, 30)), axis=0).reshape(-1, 3).mean(0)
    assert mean == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


@pytest.mark.parametrize("step", [0.001, 0.02, 0.1, 0.4])
def test_the_block_shrinks_as_the_update_grows(step):
    """Independent reference: the divergence in floating point, 3 bits of it to a block."""
    size = 20_000
    p = np.full(size, 0.5)
    theta, public = to_fixed_point(p + step), to_fixed_point(p)
    q, p = theta / 65536, public / 65536
    divergence = (q * np.log2(q / p) + (1 - q) * np.log2((1 - q) / (1 - p))).mean()
    block = np.clip(3 / divergence // 16 * 16, 16, 4080)
    body = len(encode_mask(theta, public, MaskKey(1, 1, "m", "c"), "random")) - HEADER
    assert body == 1 + np.ceil(size / block)


def test_gumbel_noise_draws_in_proportion_to_powers_of_two():
    weights = np.array([0, -1, -2, 1.5]) * 2**16
    noise = _gumbel()[np.random.default_rng(0).integers(0, 2**16, (200_000, 4))]
    drawn = np.bincount(np.argmax(weights + noise, axis=1), minlength=4) / 200_000
    expected = 2 ** (weights / 2**16)
    assert drawn == pytest.approx(expected / expected.sum(), abs=0.005)
