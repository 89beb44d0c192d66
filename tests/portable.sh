#!/usr/bin/env bash
# Runs the tests that start no engine on arithmetic that differs in its last bits, as it does on another
# processor: without AVX instructions, and on two threads. What fails here depends on one machine.
# `tests/portable.sh tests/cli` runs those of one folder.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

disturbances=(
    "ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41 OPENBLAS_CORETYPE=Nehalem"
    "TEST_THREADS=2 OMP_WAIT_POLICY=PASSIVE"
)
cache=$(mktemp -d) # torch keeps what it compiled by the machine, not by these settings
trap 'rm -rf "$cache"' EXIT
failed=0 runs=0
for settings in "${disturbances[@]}"; do
    echo "==== $settings"
    env $settings TORCHINDUCTOR_CACHE_DIR="$cache/$((++runs))" "${PYTHON:-python}" -m pytest -q -n 2 --dist worksteal -m "not engines" "$@" || failed=1
done
exit $failed
