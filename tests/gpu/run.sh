#!/usr/bin/env bash
# Runs the tests that need a CUDA device, then the benchmarks of the gates on it: beside the plain Function, and a Triton
# kernel beside torch.compile. Without a device all are skipped.
# TEST_DEVICE=cpu tries the script itself.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

failed=0
"${PYTHON:-python}" -m pytest -q -m gpu tests/gpu "$@" || failed=1
PYTHONPATH=. "${PYTHON:-python}" benchmarks/gates.py --device "${TEST_DEVICE:-cuda}" || failed=1
PYTHONPATH=. "${PYTHON:-python}" benchmarks/gates_triton.py || failed=1
exit $failed
