#!/usr/bin/env bash
# torch 2.13.0: torch.compile on the processor keeps a precompiled header in its cache folder, and takes it again in a
# process that runs with a lower ATEN_CPU_CAPABILITY. The C++ compiler then refuses the generated code. An empty cache
# folder, or the order the other way round, works. Needs g++ and a processor with AVX2.
#
# Output seen (the first line names the processor's own capability):
#   own capability, empty cache          AVX512 39.676
#   default capability, the same cache   CppCompileError
#   default capability, empty cache      DEFAULT 39.676
#
# Why it matters: ATEN_CPU_CAPABILITY is how one tries whether results depend on a machine's vector instructions, and
# how a site with mixed machines makes them compute alike. On a machine that has compiled anything before, that fails
# with an error that looks like one of the model's. Give each setting a TORCHINDUCTOR_CACHE_DIR of its own.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here/packages" torch==2.13.0 numpy==2.4.6
cat > "$here/compiled.py" <<'PYTHON'
import torch

try:
    total = torch.compile(lambda x: (x * 2 + 1).sigmoid())(torch.arange(40.0)).sum().item()
    print(torch.backends.cpu.get_cpu_capability(), f"{total:.3f}")
except Exception as error:
    print("CppCompileError" if "CppCompileError" in str(error) else repr(error))
PYTHON
run() { # what it is called, cache folder, further settings
    local name=$1 cache=$2
    shift 2
    found=$(env PYTHONPATH="$here/packages" TORCHINDUCTOR_CACHE_DIR="$here/$cache" "$@" python3 "$here/compiled.py" 2> "$here/log")
    printf '%-36s %s\n' "$name" "$found"
}
run "own capability, empty cache" first
own=$found
run "default capability, the same cache" first ATEN_CPU_CAPABILITY=default
[[ $found == CppCompileError ]]
run "default capability, empty cache" second ATEN_CPU_CAPABILITY=default
[[ $found == "DEFAULT ${own##* }" ]]
