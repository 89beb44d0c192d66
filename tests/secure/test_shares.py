"""Shares of a seed: any that reach the threshold give it back, as the library would; fewer are refused."""

import secrets

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given
from hypothesis import strategies as st

from lightning_fl_ext.secure import SecureAggregationError
from lightning_fl_ext.secure.shares import _inverse, _product, combine, split


@given(st.data())
def test_any_shares_that_reach_the_threshold_give_the_seed_that_the_library_gives(data):
    holders = data.draw(st.integers(2, 75))
    threshold = data.draw(st.integers(2, min(holders, 12)))
    seed = data.draw(st.binary(min_size=16, max_size=16))
    shares = split(seed, threshold, holders)
    places = st.lists(st.integers(1, holders), min_size=threshold, max_size=threshold, unique=True)
    some = {i: shares[i - 1] for i in data.draw(places)}
    assert combine(some, threshold) == seed == Shamir.combine(list(some.items()))


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=3, max_size=3))
def test_shares_that_no_one_made_are_put_together_as_the_library_does(values):
    shares = dict(zip((2, 5, 1000), values, strict=True))
    assert combine(shares, 3) == Shamir.combine(list(shares.items()))


@given(*[st.integers(1, 2**128 - 1)] * 3)
def test_the_arithmetic_is_that_of_a_field(a, b, c):
    assert _product(a, _inverse(a)) == 1
    assert _product(a, b ^ c) == _product(a, b) ^ _product(a, c)
    assert _product(a, _product(b, c)) == _product(_product(a, b), c) < 2**128


def test_too_few_or_cut_shares_are_refused():
    shares = split(secrets.token_bytes(16), 3, 5)
    for few in ({1: shares[0], 2: shares[1]}, {1: shares[0], 2: shares[1], 3: shares[2][:15], 0: bytes(16)}):
        with pytest.raises(SecureAggregationError, match="expected 3 shares, got 2"):
            combine(few, 3)
    with pytest.raises(SecureAggregationError, match="a threshold from 2 to 5 holders, got 6"):
        split(bytes(16), 6, 5)
