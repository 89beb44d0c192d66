"""FSDP1 and DeepSpeed, whose own code is run on the processor."""

from functools import partial
from pathlib import Path

import pytest
from _scripts import run_script

pytestmark = pytest.mark.slow
run = partial(run_script, Path(__file__).with_name("_on_processor.py"))


def assert_all_alike(told):
    one, *others = told
    assert {"steps", "first.bias", "second.bias", "round 2 val_loss", "round 2 seen"} <= one.keys()
    assert "seen.sum_value" not in one
    for other in others:
        assert other.keys() == one.keys()
        for name, values in one.items():
            assert other[name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


def test_a_client_under_fsdp1_answers_with_the_whole_weights_of_one_process():
    assert_all_alike(run("one", "fsdp1", "layers"))


def test_a_client_under_deepspeed_answers_with_the_weights_of_one_process():
    pytest.importorskip("deepspeed")
    assert_all_alike(run("one", "stage_1", "stage_2", "stage_3"))
