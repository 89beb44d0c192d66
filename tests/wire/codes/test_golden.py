"""Golden payloads pin the format: change them only together with the format's version."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_fl_ext.wire.codes import decode_mask, decode_theta, encode_mask, encode_theta

GOLDEN = Path(__file__).parent / "golden"
STRATA = {"dithered-stratified": (2, 5), "packed-stratified": (2, 5)}
NAMES = ["packed", "dithered", "random", *STRATA]


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_written_and_read_as_ever(exchange_of, name):
    e = exchange_of(3000, STRATA.get(name))
    payload = (GOLDEN / f"{name}.mask").read_bytes()
    assert encode_mask(e.theta, e.public, e.key, name.split("-")[0]) == payload
    mask = decode_mask(payload, e.public, e.key)
    assert hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() in (GOLDEN / "SHA256SUMS").read_text()


def test_theta_is_written_and_read_as_ever(exchange):
    payload = (GOLDEN / "counts.theta").read_bytes()
    assert encode_theta(exchange.counts, exchange.key) == payload
    assert np.array_equal(decode_theta(payload, 3000, exchange.key).counts, exchange.counts.counts)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_another_process_decodes_the_same_bits_whatever_its_threads(threads):
    code = f"""
import hashlib, importlib.util, pathlib, numpy as np
spec = importlib.util.spec_from_file_location("inputs", {str(Path(__file__).parent / "conftest.py")!r})
inputs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inputs)
from lightning_fl_ext.wire.codes import decode_mask, decode_theta
e = inputs.make_exchange(3000)
theta = decode_theta(pathlib.Path({str(GOLDEN)!r}, "counts.theta").read_bytes(), 3000, e.key)
assert np.array_equal(theta.counts, e.counts.counts)
for name, stratum in {[(name, STRATA.get(name)) for name in NAMES]!r}:
    e = inputs.make_exchange(3000, stratum)
    payload = pathlib.Path({str(GOLDEN)!r}, name + ".mask").read_bytes()
    bits = np.packbits(decode_mask(payload, e.public, e.key)).tobytes()
    print(hashlib.sha256(bits).hexdigest(), "", name)
"""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, threads), "PYTHONHASHSEED": threads}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == (GOLDEN / "SHA256SUMS").read_text()
