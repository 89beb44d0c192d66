#!/usr/bin/env bash
# safetensors 0.8.0, its numpy side, with ml_dtypes 0.6.0: the same BF16 bytes are read by `load_file` and refused by
# `load` with a bare KeyError; F8_E4M3 fails in both, each time with another error.
#
# Output seen:
#   BF16     load: KeyError   load_file: bfloat16
#   F8_E4M3  load: KeyError   load_file: AttributeError
#
# Why it matters: an update received as bytes and the same update kept as a file take two paths, and one of them
# fails for models in bfloat16, with an error that names a dtype and no file. Read through torch, or lay the bytes out.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" numpy==2.4.6 ml_dtypes==0.6.0 safetensors==0.8.0
PYTHONPATH=$here python3 - "$here" <<'PYTHON'
import json
import struct
import sys

import ml_dtypes  # noqa: F401
from safetensors.numpy import load, load_file

def file_of(dtype, size):
    header = json.dumps({"w": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2 * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(2 * size)

def outcome(read):
    try:
        return str(read()["w"].dtype)
    except Exception as error:
        return type(error).__name__

seen = {}
for dtype, size in (("BF16", 2), ("F8_E4M3", 1)):
    data, path = file_of(dtype, size), f"{sys.argv[1]}/{dtype}.safetensors"
    open(path, "wb").write(data)
    seen[dtype] = (outcome(lambda: load(data)), outcome(lambda: load_file(path)))
    print(f"{dtype:<8} load: {seen[dtype][0]}   load_file: {seen[dtype][1]}")
assert seen == {"BF16": ("KeyError", "bfloat16"), "F8_E4M3": ("KeyError", "AttributeError")}, seen
PYTHON
