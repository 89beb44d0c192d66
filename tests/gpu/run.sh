#!/usr/bin/env bash
# Runs the tests that need a CUDA device, then the benchmark of the gates on it. Without one both are skipped.
# TEST_DEVICE=cpu tries the script itself.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

failed=0
"${PYTHON:-python}" -m pytest -q -m gpu tests/gpu "$@" || failed=1
PYTHONPATH=. "${PYTHON:-python}" benchmarks/gates.py --device "${TEST_DEVICE:-cuda}" || failed=1
exit $failed
