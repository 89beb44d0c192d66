"""Lightning averages the counts of processes as integers; the bridge lets it count in floats."""

from pathlib import Path

import pytest
from _scripts import run_script


def test_means_over_an_odd_number_of_examples_are_right_in_every_stage():
    found = run_script(Path(__file__).with_name("_means.py"))
    assert {"one", "one_epoch", "val_one", "test_one"} <= set(found)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-6)
