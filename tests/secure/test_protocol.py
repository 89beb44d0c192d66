"""The protocol: what comes out is the survivors' exact mean, whoever drops out, and nothing else is seen."""

import ml_dtypes
import numpy as np
import pytest
from _round import STEPS, make_updates, run
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.aggregation import exact_mean
from lightning_fl_ext.results import digest
from lightning_fl_ext.secure import SecureAggregationError, masks
from lightning_fl_ext.secure.keys import SEED_BYTES, agree, derive, private_key
from lightning_fl_ext.secure.messages import parts
from lightning_fl_ext.secure.shares import combine

SMALL = {"w": np.zeros((2, 3), np.float32), "steps": np.array(0), "mask": np.zeros(3, bool)}
FLOATS = ["float16", "float32", "float64", "complex64", "complex128"]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"]
EVERY_DTYPE = {
    **{d: np.zeros((2, 2), d) for d in FLOATS + INTEGERS},
    **{d: np.zeros((2, 2), getattr(ml_dtypes, d)) for d in NARROW},
}


def plain(like, updates, survivors):
    return digest(exact_mean(like, [updates[i] for i in survivors]))


@pytest.mark.parametrize("number", [3, 5, 10, 40])
def test_the_sum_has_the_digest_of_the_exact_mean(number):
    updates = make_updates(number, SMALL)
    total, survivors, _ = run(updates, SMALL)
    assert survivors == list(range(number))
    assert digest(total.mean.result()) == plain(SMALL, updates, survivors)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_every_dtype_has_the_digest_of_the_exact_mean(scale):
    like = EVERY_DTYPE if scale == 1.0 else {k: v for k, v in EVERY_DTYPE.items() if v.dtype.itemsize > 2}
    updates = make_updates(5, like, scale=scale)
    total, survivors, _ = run(updates, like)
    assert digest(total.mean.result()) == plain(like, updates, survivors)


def test_integers_beyond_63_bits_have_the_digest_of_the_exact_mean():
    like = {"hash": np.zeros(3, np.uint64), "offset": np.zeros(2, np.int64)}
    updates = [
        (
            {
                "hash": np.array([2**64 - 1 - i, 0, 2**63], np.uint64),
                "offset": np.array([-(2**63) + i, 2**62], np.int64),
            },
            2**20 + i,
        )
        for i in range(4)
    ]
    total, survivors, _ = run(updates, like)
    assert digest(total.mean.result()) == plain(like, updates, survivors)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [5, 40])
def test_one_that_drops_out_at_any_step_leaves_the_mean_of_the_others(number, step):
    updates = make_updates(number, SMALL)
    total, survivors, _ = run(updates, SMALL, drops={1: step})
    assert survivors == [i for i in range(number) if i != 1 or step == "unmask"]
    assert digest(total.mean.result()) == plain(SMALL, updates, survivors)


@given(
    drops=st.dictionaries(st.integers(0, 6), st.sampled_from(STEPS), max_size=5),
    threshold=st.sampled_from([4, 5, 6]),
)
def test_any_pattern_of_drop_outs_gives_the_survivors_mean_or_nothing(drops, threshold):
    updates = make_updates(7, SMALL)
    left = 7 - len(drops)
    if left >= threshold:
        total, survivors, _ = run(updates, SMALL, threshold, drops)
        assert survivors == [i for i in range(7) if drops.get(i, "unmask") == "unmask"]
        assert digest(total.mean.result()) == plain(SMALL, updates, survivors)
    else:
        with pytest.raises(SecureAggregationError, match=f"{threshold}"):
            run(updates, SMALL, threshold, drops)


@settings(max_examples=5)
@given(st.sets(st.integers(0, 39), max_size=8), st.sampled_from(STEPS[:3]))
def test_a_fifth_of_many_may_drop_out(gone, step):
    updates = make_updates(40, {"w": np.zeros(1)})
    total, survivors, _ = run(updates, {"w": np.zeros(1)}, drops=dict.fromkeys(gone, step))
    assert digest(total.mean.result()) == plain({"w": np.zeros(1)}, updates, survivors)


@given(st.lists(st.lists(st.integers(-(2**90), 2**90), min_size=3, max_size=3), min_size=3, max_size=4))
def test_other_whole_numbers_are_summed_as_they_are(numbers):
    total, _, _ = run(make_updates(len(numbers), SMALL), SMALL, numbers=numbers)
    assert total.numbers == [sum(of_clients) for of_clients in zip(*numbers, strict=True)]


def test_what_the_server_receives_of_a_client_is_uniform_and_new_in_every_block():
    like = {"w": np.zeros(2**15, np.float32)}
    zeros = [({"w": np.zeros(2**15, np.float32)}, 1) for _ in range(3)]
    others = make_updates(3, like)
    vectors = [run(updates, like)[2].vectors[0] for updates in (zeros, others)]
    for vector in vectors:
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # 255 degrees of freedom: a mean of 255, a standard deviation of 22.6; noise leaves this by 1e-9.
        assert 130 < chi_square < 400
    blocks = [v[: 2**15].reshape(-1, 64) for v in vectors]
    assert (blocks[0] != blocks[1]).any(axis=1).all()


def test_under_one_key_schedule_masked_vectors_tell_two_updates_apart_only_by_their_masks(monkeypatch):
    # The masks of a fixed schedule make the vectors comparable: each alone still looks like noise.
    import secrets

    def scheduled(number):
        scheduled.count += 1
        return scheduled.count.to_bytes(number, "little")

    like = {"w": np.zeros(2**14, np.float32)}
    updates = {"zero": [({"w": np.zeros(2**14, np.float32)}, 1)] * 3, "other": make_updates(3, like)}
    seen = {}
    for what, of_clients in updates.items():
        scheduled.count = 0
        monkeypatch.setattr(secrets, "token_bytes", scheduled)
        seen[what] = run(of_clients, like)[2].vectors[1]
    monkeypatch.undo()
    for vector in seen.values():
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        assert 130 < ((counts - expected) ** 2 / expected).sum() < 400
    zero, other = (vector[: 2**14].reshape(-1, 64) for vector in seen.values())
    assert (zero != other).any(axis=1).all()
    difference = other - zero  # what the fixed masks leave: the other update, in quanta
    assert (difference.view(np.int64) == np.rint(_quanta(updates["other"][1])).reshape(-1, 64)).all()


def _quanta(update):
    arrays, weight = update
    return arrays["w"].astype(np.float64) * weight * 2.0**44


def test_no_message_holds_a_seed_or_an_update():
    updates = make_updates(3, SMALL)
    _, _, seen = run(updates, SMALL)
    raw = [vector.tobytes() for vector in seen.vectors.values()]
    for arrays, _ in updates:
        assert all(arrays["w"].tobytes() not in vector for vector in raw)


def test_all_that_the_server_can_compute_from_what_it_got_leaves_a_single_vector_masked():
    like = {"w": np.zeros(2**14, np.float32)}
    seen = run([({"w": np.zeros(2**14, np.float32)}, 1)] * 4, like, drops={3: "mask"})[2]
    own_masks, keys = _opened(seen.messages)
    assert set(own_masks) == {0, 1, 2}
    assert set(keys) == {3}  # no one's both
    vector, digest_ = seen.vectors[0].copy(), seen.server.roster.digest
    masks.mask(vector, minus=[derive(own_masks[0], "self", digest_)])
    lost = agree(private_key(keys[3]), seen.server.roster.members[0].mask_key, "mask", digest_)
    masks.mask(vector, minus=[lost])
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert 130 < ((counts - expected) ** 2 / expected).sum() < 400  # still under masks of 1 and 2


def _opened(messages):
    """Put together every secret that the shares in the clients' last messages give."""
    last = [m for m in messages if "self-shares" in m]
    opened = []
    for names, values in (("survivors", "self-shares"), ("dropped", "key-shares")):
        found = {}
        for holder, message in enumerate(last, start=1):
            of = message[names]
            for j, share in zip(of, parts(message, values, SEED_BYTES, len(of)), strict=True):
                found.setdefault(j, {})[holder] = share
        opened.append({j: combine(shares, 3) for j, shares in found.items()})
    return opened
