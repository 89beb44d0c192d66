"""A few thousand damaged inputs for every decoder; `make fuzz` tries many more."""

import logging
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from _decoders import MUCH, TARGETS, fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_gives_a_value_or_one_of_the_packages_errors(target):
    logging.disable(logging.WARNING)
    try:
        found = fuzz(seed=1, turns=3, only=target)
    finally:
        logging.disable(logging.NOTSET)
    assert not found.faults, str(found)
    assert found.inputs[target] > found.values[target] or not TARGETS[target].raises
    assert found.grown < MUCH


def test_the_same_seed_makes_the_same_inputs():
    first, second = (fuzz(seed=3, turns=1, only="masks") for _ in range(2))
    assert (first.inputs, first.values) == (second.inputs, second.values)
