"""θ written for whoever holds an earlier one, against the θ that it must be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.aggregation.mask_posterior import MaskPosterior, ThetaCounts
from lightning_fl_ext.wire.codes import (
    CountedRound,
    MaskCodeError,
    MaskKey,
    base_of,
    decode_change,
    encode_counts_change,
    encode_mask,
    encode_relay,
    encode_same,
    encode_sum_change,
    encode_theta,
    sample_mask,
    theta_digest,
    to_fixed_point,
)
from lightning_fl_ext.wire.codes.flips import MOST_CLIENTS, decode_sum, encode_sum
from lightning_fl_ext.wire.codes.frame import wrap

GOLDEN = Path(__file__).parent / "golden"
DOWN = MaskKey(run=7, round=4, model="digits")
CLIENTS = ("a", "b", "site-c")


class Round:
    """A round of three clients whose θ moved by up to 2000 / 65536, and what came of it."""

    def __init__(self, e, stratified=False, code="dithered", prior=1, added=False):
        self.base = e.counts
        n = len(CLIENTS)
        slots = tuple((i, n) for i in range(n)) if stratified else ()
        self.counted = CountedRound(3, CLIENTS, slots)
        keys = self.counted.keys(DOWN)
        self.payloads = [
            encode_mask(np.roll(e.theta, i).clip(1), e.public, key, code) for i, key in enumerate(keys)
        ]
        masks = [sample_mask(np.roll(e.theta, i).clip(1), key) for i, key in enumerate(keys)]
        if added:
            opened = self.base.counts.astype(np.int64) - (prior - 1)
            before = MaskPosterior(opened, self.base.trials - 2 * (prior - 1), 1, prior, 9)
        else:
            before = MaskPosterior.start(e.counts.counts.size, prior=prior)
        self.theta = before.update(masks).theta()

    def payload(self, kind, key=DOWN):
        if kind == "same":
            return encode_same(self.base, key)
        if kind == "counts":
            return encode_counts_change(self.theta, self.base, key)
        if kind == "sum":
            return encode_sum_change(self.theta, self.base, self.counted, key)
        return encode_relay(self.theta, self.base, self.counted, self.payloads, key)

    def expected(self, kind):
        return self.base if kind == "same" else self.theta


KINDS = ["same", "sum", "relay", "counts"]


def same(first, second):
    return first.trials == second.trials and np.array_equal(first.counts, second.counts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("prior", "added"), [(1, False), (3, False), (1, True), (3, True)])
def test_whoever_holds_the_base_reads_theta_to_the_bit(exchange, kind, stratified, prior, added):
    r = Round(exchange, stratified, prior=prior, added=added)
    payload = r.payload(kind)
    assert base_of(payload, DOWN) == theta_digest(r.base)
    assert same(decode_change(payload, r.base, DOWN), r.expected(kind))


def test_theta_that_stands_alone_builds_on_none(exchange):
    assert base_of(encode_theta(exchange.counts, DOWN), DOWN) is None


def test_relayed_are_masks_of_every_code(exchange):
    keys = CountedRound(3, CLIENTS).keys(DOWN)
    written = dict(zip(CLIENTS, ("packed", "dithered", "random"), strict=True))
    from lightning_fl_ext.wire.codes import decode_mask

    payloads = [encode_mask(exchange.theta, exchange.public, k, written[k.client]) for k in keys]
    masks = [decode_mask(p, exchange.public, k) for p, k in zip(payloads, keys, strict=True)]
    theta = ThetaCounts(np.sum(masks, axis=0, dtype=np.uint16), 3)
    payload = encode_relay(theta, exchange.counts, CountedRound(3, CLIENTS), payloads, DOWN)
    assert same(decode_change(payload, exchange.counts, DOWN), theta)


def test_packed_masks_are_summed_as_dithered_ones(exchange):
    assert Round(exchange, code="packed").payload("sum") == Round(exchange).payload("sum")


@pytest.mark.parametrize("name", ["same", "counts", "sum", "sum-stratified", "relay", "relay-stratified"])
def test_changes_are_written_and_read_as_ever(exchange, name):
    kind, r = name.split("-")[0], Round(exchange, "stratified" in name)
    golden = (GOLDEN / f"{name}.change").read_bytes()
    assert r.payload(kind) == golden
    assert same(decode_change(golden, r.base, DOWN), r.expected(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_added_byte_and_flipped_bit_is_rejected(exchange_of, kind):
    r = Round(exchange_of(150), stratified=True)
    payload = r.payload(kind)
    for length in range(len(payload)):
        with pytest.raises(MaskCodeError):
            decode_change(payload[:length], r.base, DOWN)
    with pytest.raises(MaskCodeError):
        decode_change(payload + b"\0", r.base, DOWN)
    reasons = set()
    for bit in range(8 * len(payload)):
        bad = bytearray(payload)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MaskCodeError) as error:
            decode_change(bytes(bad), r.base, DOWN)
        reasons.add(error.value.reason)
    assert {"base", "kind", "round", "altered"} <= reasons


@settings(deadline=None, max_examples=150)
@given(body=st.binary(max_size=80), kind=st.integers(17, 20), named=st.booleans())
def test_a_forged_body_never_decodes(body, kind, named):
    base = ThetaCounts(np.arange(200, dtype=np.uint16) % 10, 10)
    body = (theta_digest(base) if named else b"") + body
    with pytest.raises(MaskCodeError):
        decode_change(wrap(kind, DOWN, body, b"forged"), base, DOWN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_of_another_base_is_refused(exchange, kind):
    r = Round(exchange)
    other = ThetaCounts(r.base.counts, r.base.trials + 1)
    with pytest.raises(MaskCodeError, match="a change of") as error:
        decode_change(r.payload(kind), other, DOWN)
    assert error.value.reason == "base"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "reason"), [({"round": 5}, "round"), ({"model": "x"}, "model"), ({"run": 8}, "sender")]
)
def test_a_change_for_something_else_is_refused(exchange, kind, change, reason):
    r = Round(exchange)
    with pytest.raises(MaskCodeError) as error:
        decode_change(r.payload(kind), r.base, replace(DOWN, **change))
    assert error.value.reason == reason


def test_theta_alone_is_not_taken_for_a_change(exchange):
    with pytest.raises(MaskCodeError) as error:
        decode_change(encode_theta(exchange.counts, DOWN), exchange.counts, DOWN)
    assert error.value.reason == "kind"


def test_what_is_no_sum_of_those_masks_is_not_written_as_one(exchange):
    r = Round(exchange)
    for theta in (
        ThetaCounts(r.theta.counts + np.uint16(5), 9),
        ThetaCounts(r.theta.counts[:-1], 3),
    ):
        assert encode_sum_change(theta, r.base, r.counted, DOWN) is None
        assert encode_relay(theta, r.base, r.counted, r.payloads, DOWN) is None


def test_the_masks_of_too_many_clients_are_not_written(exchange_of):
    e = exchange_of(10)
    counted = CountedRound(3, tuple(f"{i:05d}" for i in range(MOST_CLIENTS + 1)))
    theta = ThetaCounts(e.counts.counts, len(counted.clients))
    assert encode_sum_change(theta, e.counts, counted, DOWN) is None
    fits = replace(counted, clients=counted.clients[1:])
    assert encode_sum_change(replace(theta, trials=MOST_CLIENTS), e.counts, fits, DOWN) is not None


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(0, 40),
    masks=st.integers(1, 30),
    seed=st.integers(0, 2**32 - 1),
    edge=st.sampled_from(["none", "all", "any"]),
)
def test_any_sum_comes_back_however_far_it_is_from_the_guesses(size, masks, seed, edge):
    rng = np.random.default_rng(seed)
    total = rng.integers(0, masks + 1, size).astype(np.uint16)
    total = {"none": total * 0, "all": total * 0 + masks, "any": total}[edge].astype(np.uint16)
    public = rng.integers(1, 2**16, size).astype(np.uint16)
    keys = [MaskKey(1, 1, "m", str(i)) for i in range(masks)]
    decoded, rest = decode_sum(encode_sum(total, public, keys) + b"rest", public, keys)
    assert np.array_equal(decoded, total)
    assert rest == b"rest"


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(0, 40),
    trials=st.integers(1, 300),
    before=st.integers(1, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_counts_come_back_given_any_others(size, trials, before, seed):
    rng = np.random.default_rng(seed)
    base = ThetaCounts(rng.integers(0, before + 1, size).astype(np.uint16), before)
    theta = ThetaCounts(rng.integers(0, trials + 1, size).astype(np.uint16), trials)
    assert same(decode_change(encode_counts_change(theta, base, DOWN), base, DOWN), theta)


def test_counts_too_many_to_be_contexts_are_not_written_as_a_change(exchange_of):
    base = ThetaCounts(exchange_of(10).counts.counts, 255)
    assert encode_counts_change(ThetaCounts(base.counts, 255), base, DOWN) is not None
    assert encode_counts_change(ThetaCounts(base.counts, 256), base, DOWN) is None
    assert encode_counts_change(ThetaCounts(base.counts[1:], 255), base, DOWN) is None


def test_the_sum_costs_less_than_the_masks_one_by_one_and_far_less_than_theta_alone():
    """Ten clients that move by 0.3 in log odds each: the entropy of what they flip is what is sent."""
    rng, size = np.random.default_rng(0), 60_000
    base = ThetaCounts(rng.integers(0, 11, size).astype(np.uint16), 10)
    logits = np.log(base.probabilities() / (1 - base.probabilities()))
    counted = CountedRound(3, tuple("abcdefghij"))
    thetas = [to_fixed_point(1 / (1 + np.exp(-logits - rng.normal(0, 0.3, size)))) for _ in range(10)]
    masks = [sample_mask(q, key) for q, key in zip(thetas, counted.keys(DOWN), strict=True)]
    theta = ThetaCounts(np.sum(masks, axis=0, dtype=np.uint16), 10)
    payloads = [
        encode_mask(q, base.fixed_point(), key) for q, key in zip(thetas, counted.keys(DOWN), strict=True)
    ]
    alone = len(encode_theta(theta, DOWN))
    relay = len(encode_relay(theta, base, counted, payloads, DOWN))
    added = len(encode_sum_change(theta, base, counted, DOWN))
    assert added < 0.85 * relay
    assert added < 0.35 * alone
    counts = len(encode_counts_change(theta, base, DOWN))
    assert added < 0.6 * counts
    assert counts < 0.65 * alone
    assert len(encode_same(theta, DOWN)) == 28 + 16
