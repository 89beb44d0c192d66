#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2: torch.onnx.export(dynamo=True) is given an axis that may have any length. If the
# module cannot have one, torch.export.export refuses with a reason; torch.onnx.export tries again with all axes
# constant, and writes a graph for the example's length alone.
#
# Output seen:
#   torch.export.export    refused: UserError
#   torch.onnx.export      written, first axis 2
#
# Why it matters: a model that was exported for any batch size is found to take one size only where it is served. Trace
# by torch.export.export first, and give torch.onnx.export the program: it has nothing else to try then.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" \
    torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2
PYTHONPATH=$here python3 - 2>"$here/said" <<'PYTHON' || { cat "$here/said"; exit 1; }
import warnings

import torch

warnings.simplefilter("ignore")


class Net(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, 2, 2) + 1.0


batch = torch.export.Dim("batch")
example = (torch.zeros(2, 4),)
try:
    torch.export.export(Net(), example, dynamic_shapes=({0: batch},))
    exported = "taken"
except Exception as error:
    exported = f"refused: {type(error).__name__}"
program = torch.onnx.export(Net(), example, dynamic_shapes=({0: batch},), dynamo=True, verbose=False)
first = program.model_proto.graph.input[0].type.tensor_type.shape.dim[0]
print("torch.export.export   ", exported)
print("torch.onnx.export      written, first axis", first.dim_value or first.dim_param)
assert exported.startswith("refused") and first.dim_value == 2
PYTHON
