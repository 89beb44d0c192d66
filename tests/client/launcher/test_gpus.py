"""Processes of the launcher on CUDA devices."""

from pathlib import Path

import pytest
import torch
from _scripts import run_script

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("name", "reference", "devices"),
    [
        ("one_gpu", "one", 1),
        ("ddp", "one", 2),
        ("fsdp1", "one", 2),
        ("fsdp2", "one", 2),
        ("tensor_parallel", "late", 2),
    ],
)
def test_processes_on_devices_give_the_weights_of_the_processor(name, reference, devices):
    if torch.cuda.device_count() < devices:
        pytest.skip(f"needs {devices} CUDA devices")
    told = run_script(Path(__file__).with_name("_gpus.py"), name, reference)
    for entry, values in told[reference].items():
        assert told[name][entry] == pytest.approx(values, rel=1e-4, abs=1e-5), entry
