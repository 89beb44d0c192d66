"""The table in the guide to gates says what its benchmark measures."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from lightning_fl_ext.gates import Estimator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gates", ROOT / "benchmarks" / "gates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.NUM_SAMPLES = 100_000
    return module


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_documented_bias_and_deviation_are_the_measured_ones(
    benchmark: ModuleType, estimator: Estimator
) -> None:
    lines = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| `{estimator}` |") and line.count(" / ") >= 3)
    for cell, loss in zip(row.strip("| ").split("|")[2:], benchmark.LOSSES.values(), strict=True):
        bias, deviation = benchmark.bias_and_deviation(loss, estimator)
        documented_bias, documented_deviation = (float(number) for number in cell.split("/"))
        assert bias == pytest.approx(documented_bias, abs=0.015)
        assert deviation == pytest.approx(documented_deviation, rel=0.03, abs=0.005)
