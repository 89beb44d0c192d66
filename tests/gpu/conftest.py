"""Tests that need a CUDA device; without one they are skipped, or run on another: ``TEST_DEVICE=cpu``."""

import os
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="there is no CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(missing)


@pytest.fixture
def device():
    return torch.device(DEVICE)


@pytest.fixture
def accelerator():
    return "gpu" if DEVICE == "cuda" else DEVICE
