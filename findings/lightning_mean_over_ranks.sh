#!/usr/bin/env bash
# lightning 2.6.6 with torch 2.13.0: `self.log(..., sync_dist=True)` over processes whose examples add up to a number
# that the number of processes does not divide gives a wrong mean. The count is averaged over the processes as an
# integer, and what is left over is cut off: 25.5 becomes 25. Seen with gloo; even totals are right.
#
# Output seen (two processes log 1.0 in every batch, so the mean is 1):
#   26 and 26 examples: 1.000000
#   26 and 25 examples: 1.020000
#   3 and 2 examples:   1.250000
#
# Why it matters: a client of several processes reports its losses this way, and early stopping, checkpoints and a
# federation's weighted means go by them. The last batch of a data set is what makes a total odd.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here/packages" \
    torch==2.13.0 lightning==2.6.6 numpy==2.4.6
cat > "$here/mean.py" <<'PYTHON'
import logging
import sys
import warnings

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Ones(L.LightningModule):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def val_dataloader(self):
        return DataLoader(range(self.counts[self.trainer.global_rank]), batch_size=8)

    def validation_step(self, batch, _):
        self.log("one", torch.ones(()), sync_dist=True, batch_size=len(batch))


for counts, told in (((26, 26), 1.0), ((26, 25), 51 / 50), ((3, 2), 5 / 4)):
    options = {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", **options)
    mean = trainer.validate(Ones(counts), verbose=False)[0]["one"]
    print(f"{f'{counts[0]} and {counts[1]} examples:':<19} {mean:.6f}")
    if abs(mean - told) > 1e-6:
        sys.exit("another mean than stated")
PYTHON
PYTHONPATH="$here/packages" OMP_NUM_THREADS=1 python3 "$here/mean.py"
