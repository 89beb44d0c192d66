"""Seeds depend on what they are named after, and seeding leaves no trace."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_fl_ext.seeds import derive_seed, seeded

NAMES = st.text(max_size=8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64), st.integers(0, 10_000), NAMES, NAMES)
def test_every_seeding_function_takes_a_derived_seed(run_seed, server_round, client_id, purpose):
    seed = derive_seed(run_seed, server_round, client_id, purpose)
    assert 0 <= seed < 2**32
    assert seed == derive_seed(run_seed, server_round, client_id, purpose)


def test_each_part_of_the_name_changes_the_seed():
    base = (7, 1, "a", "fit")
    changed = [
        (8, 1, "a", "fit"),
        (7, 2, "a", "fit"),
        (7, 1, "b", "fit"),
        (7, 1, "a", "sample"),
        (1, 7, "a", "fit"),
    ]
    swapped = [(7, 1, "fit", "a")]
    assert len({derive_seed(*name) for name in [base, *changed, *swapped]}) == 7


def test_many_clients_and_rounds_get_different_seeds():
    seeds = {derive_seed(0, r, str(c), "fit") for r in range(50) for c in range(50)}
    assert len(seeds) > 2490, "2 500 draws of 32 bits collide about 0.0007 times"


def test_a_negative_run_seed_is_refused():
    with pytest.raises(ValueError, match="non-negative"):
        derive_seed(-1, 1, "a", "fit")


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def test_the_same_seed_gives_the_same_draws_and_the_state_comes_back():
    with seeded(3):
        first = draws()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    expected = draws()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    with seeded(3):
        assert draws() == first
    assert draws() == expected


def test_the_state_comes_back_after_an_exception_too():
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(3):
        draws()[0] / 0
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_devices_that_are_not_at_work_are_not_woken_and_are_seeded_when_they_start(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)  # to read their state would start them
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(5)
    with seeded(3):
        assert seeds == [5, 3]
    assert seeds == [5, 3, 5]


def test_torch_can_be_left_alone():
    state = torch.get_rng_state()
    with seeded(3, torch=False):
        assert torch.equal(torch.get_rng_state(), state)
