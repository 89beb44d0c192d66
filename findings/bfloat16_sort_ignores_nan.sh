#!/usr/bin/env bash
# numpy 2.4.6 with ml_dtypes 0.6.0: sorting bfloat16 or float8 that holds NaN leaves NaN where it is and the rest
# unsorted, in silence. float16 of numpy itself sorts NaN to the end.
#
# Output seen:
#   float16          sorted [1.0, 2.0, 3.0, 4.0, nan]
#   bfloat16         sorted [2.0, 4.0, nan, 1.0, 3.0]
#   float8_e4m3fn    sorted [2.0, 4.0, nan, 1.0, 3.0]
#   median of 19 bfloat16 ones and twos and one NaN, by a sort: finite
#
# Why it matters: coordinate medians and trimmed means sort. A client that sends one NaN gets a finite, wrong
# median out of arrays in half precision, while the same code on float32 shows NaN. Screen first, or sort float32.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" numpy==2.4.6 ml_dtypes==0.6.0
PYTHONPATH=$here python3 - <<'PYTHON'
import ml_dtypes
import numpy as np

values = [4.0, 2.0, float("nan"), 3.0, 1.0]
found = {}
for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    found[dtype.__name__] = [float(v) for v in np.sort(np.array(values, dtype))]
    print(f"{dtype.__name__:<16} sorted {found[dtype.__name__]}")
assert found["float16"][:4] == [1.0, 2.0, 3.0, 4.0] and np.isnan(found["float16"][4])
for name in ("bfloat16", "float8_e4m3fn"):
    rest = [v for v in found[name] if v == v]
    assert not np.isnan(found[name][4]) and rest != sorted(rest), found[name]

many = np.array([1.0, 2.0] * 9 + [float("nan"), 1.0], ml_dtypes.bfloat16)
middle = float(np.sort(many)[len(many) // 2])
print("median of 19 bfloat16 ones and twos and one NaN, by a sort:", "finite" if np.isfinite(middle) else middle)
assert np.isfinite(middle)
PYTHON
