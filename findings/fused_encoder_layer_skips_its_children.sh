#!/usr/bin/env bash
# torch 2.13.0: an `nn.TransformerEncoderLayer` in evaluation mode without gradients computes itself in one fused call.
# A module that stands in the place of one of its dropouts is then not called, and `FlopCounterMode` counts nothing.
# With gradients on, the same layer calls the module and is counted.
#
# Output seen:
#   with gradients      the module counts: True    operations: 61440
#   without gradients   the module counts: False   operations: 0
#
# Why it matters: a gate, an adapter or a quantizer put there works in training and is passed by in validation and
# in use, without a word; and a count of operations, taken as one does without gradients, leaves attention out. A
# hook anywhere within the layer, be it empty, turns the fused call off.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 numpy==2.4.6
PYTHONPATH=$here python3 -W ignore - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Halve(nn.Module):
    def forward(self, x):
        return x / 2


def layer():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 4, 64, batch_first=True).eval()


plain, changed, rows = layer(), layer(), torch.ones(2, 5, 16)
changed.dropout = Halve()
found = {}
for grad, words in ((True, "with gradients"), (False, "without gradients")):
    with torch.set_grad_enabled(grad):
        counts = not torch.equal(plain(rows), changed(rows))
        with FlopCounterMode(display=False) as counter:
            plain(rows)
    found[grad] = counts, counter.get_total_flops()
    print(f"{words:<19} the module counts: {counts!s:<7} operations: {found[grad][1]}")
assert found == {True: (True, 61440), False: (False, 0)}, found

changed.dropout.register_forward_hook(lambda *_: None)
with torch.no_grad():
    assert not torch.equal(plain(rows), changed(rows)), "a hook no longer turns the fused call off"
PYTHON
