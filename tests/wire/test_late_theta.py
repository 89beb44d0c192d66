"""θ is not decoded before the model says how large it may be."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fl_ext import MaskedModule, MaskExchange
from lightning_fl_ext.wire import RoundInfo, StateMismatchError
from lightning_fl_ext.wire.codes import MaskCodeError
from lightning_fl_ext.wire.masks import late_theta
from lightning_fl_ext.wire.masks.names import COUNTS, MASKS, MODEL, SIZE, TRIALS

DOWN = RoundInfo(run_seed=7, server_round=3)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return MaskedModule(nn.Linear(6, 5), seed=1).state_dict()


@pytest.fixture
def sent(state):
    exchange = MaskExchange()
    return exchange.to_client(exchange.start(state), DOWN)


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(late_theta, "DECODED_AT_ONCE", 0)


@pytest.mark.parametrize("size", [34, 36, 2**25, 2**31 - 1])
def test_theta_of_another_size_than_the_models_is_refused_without_memory(state, sent, size):
    exchange = MaskExchange()
    sent = {**sent, SIZE: np.array(size)}
    tracemalloc.start()
    try:
        with pytest.raises((StateMismatchError, MaskCodeError)) as refused:
            exchange.unpack(exchange.from_server(sent, DOWN), state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    if size > 2**20:
        assert f"expected 35 masked parameters, got {size}" in str(refused.value)


def test_a_large_models_theta_is_the_same_when_it_is_decoded_late(state, sent, late):
    exchange = MaskExchange()
    received = exchange.from_server(sent, DOWN)
    assert "_theta" not in vars(received)
    assert list(received) == [COUNTS, TRIALS, MODEL]
    assert len(received) == 3
    again = pickle.loads(pickle.dumps(received))
    start = exchange.start(state)
    for name in start:
        np.testing.assert_array_equal(received[name], start[name])
        np.testing.assert_array_equal(again[name], start[name])
    new, old = (exchange.unpack(arrays, state) for arrays in (received, start))
    assert {n: t.tolist() for n, t in new.items()} == {n: t.tolist() for n, t in old.items()}


def test_the_header_is_looked_at_when_it_comes(sent, late):
    with pytest.raises(MaskCodeError, match="for round 4"):
        MaskExchange().from_server(sent, RoundInfo(run_seed=7, server_round=4))


def test_counts_that_come_beside_the_payload_are_not_taken(state, sent):
    exchange = MaskExchange()
    received = exchange.from_server({**sent, COUNTS: np.zeros(99, np.uint16), TRIALS: np.array(1)}, DOWN)
    np.testing.assert_array_equal(received[COUNTS], exchange.start(state)[COUNTS])
    assert MASKS not in received
