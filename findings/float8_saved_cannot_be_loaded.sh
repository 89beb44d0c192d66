#!/usr/bin/env bash
# numpy 2.4.6 with ml_dtypes 0.6.0: `np.save` writes every ml_dtypes array without a word. Of what it wrote, `np.load`
# cannot read float8_e5m2 at all, and gives the other small dtypes back as void, with another dtype and no values.
#
# Output seen:
#   bfloat16        written, read as |V2
#   float8_e4m3fn   written, read as |V1
#   float8_e5m2     written, not read: ValueError
#
# Why it matters: a federation that stores updates with `np.save` keeps files that look whole and are found out
# only when a run is to be resumed or replayed. Raw bytes with a dtype of one's own, or safetensors, keep them.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" numpy==2.4.6 ml_dtypes==0.6.0
PYTHONPATH=$here python3 - <<'PYTHON'
import io

import ml_dtypes
import numpy as np

seen = {}
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    file = io.BytesIO()
    np.save(file, np.ones(3, dtype))
    file.seek(0)
    try:
        seen[dtype.__name__] = f"read as {np.load(file).dtype.str}"
    except Exception as error:
        seen[dtype.__name__] = f"not read: {type(error).__name__}"
    print(f"{dtype.__name__:<15} written, {seen[dtype.__name__]}")
assert seen == {
    "bfloat16": "read as |V2",
    "float8_e4m3fn": "read as |V1",
    "float8_e5m2": "not read: ValueError",
}, seen
PYTHON
