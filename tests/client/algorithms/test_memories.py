"""Where a client keeps states: two at most, each with the round that it was made from."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from lightning_fl_ext.client.algorithms.memory import ContextMemory
from lightning_fl_ext.client.persistence.algorithm_states import FolderMemory


@pytest.fixture(params=["context", "folder"])
def open_memory(request, kit, tmp_path):
    """Opens the memory of a run anew."""
    context = kit.context()

    def open_(run="7"):
        if request.param == "context":
            return ContextMemory(context, run, "scaffold")
        return FolderMemory(tmp_path, "site-a", run, "scaffold")

    return open_


def state(number):
    return {"w": np.full(2, number, np.float32)}


def test_the_newest_state_and_the_one_it_was_made_from_are_held(open_memory):
    for previous, number in ((0, 1), (1, 2), (2, 4), (4, 5)):
        open_memory().write(number, previous, state(number))
    memory = open_memory()
    assert (memory.rounds(), memory.made_from(4), memory.made_from(5)) == ([4, 5], 2, 4)
    for number in (4, 5):
        np.testing.assert_array_equal(memory.read(number)["w"], state(number)["w"], strict=True)
    assert (memory.read(2), memory.made_from(2)) == (None, 0)


def test_a_round_asked_for_again_takes_the_place_of_those_after_it(open_memory):
    for previous, number in ((0, 1), (1, 2), (1, 2)):
        open_memory().write(number, previous, state(number))
    assert (open_memory().rounds(), open_memory().made_from(2)) == ([1, 2], 1)
    open_memory().write(1, 0, state(9))
    assert (open_memory().rounds(), open_memory().made_from(1)) == ([1], 0)


def test_another_run_has_states_of_its_own(open_memory):
    open_memory().write(1, 0, state(1))
    other = open_memory(run="8")
    assert (other.rounds(), other.read(1), other.made_from(1)) == ([], None, 0)


def test_flower_s_context_holds_no_more_records_than_states(kit):
    context = kit.context()
    for number in range(1, 7):
        ContextMemory(context, "7", "feddyn").write(number, number - 1, state(number))
    assert sorted(context.state) == ["algorithm-feddyn", "algorithm-feddyn-5", "algorithm-feddyn-6"]
    assert isinstance(context.state["algorithm-feddyn"], ConfigRecord)
