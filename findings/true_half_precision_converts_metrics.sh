#!/usr/bin/env bash
# torchmetrics 1.9.0 with lightning 2.6.6 and torch 2.13.0: torchmetrics guards its metrics' dtype ("dtype conversion ...
# will only happen through the special set_dtype method", says Metric._apply), so that module.half() and
# module.bfloat16() leave states in single precision. `module.to(dtype)`, which is how Lightning converts a module for
# precision="bf16-true", passes the guard: states and thresholds become bfloat16. A sum in bfloat16 stops growing at 256
# times its summands, or runs away from them.
#
# Output seen (1000 batches; the error is 1 in each, the value 1.5):
#   module.bfloat16()               states in torch.float32
#   module.to(torch.bfloat16)       states in torch.bfloat16
#   precision="32-true"             mean squared error 1.000, mean 1.500
#   precision="bf16-true"           mean squared error 0.256, mean 2.000
#
# Why it matters: losses and errors that such a run reports, stops by and keeps checkpoints by, are wrong by any factor,
# and by another one for each size of the data; numbers that `self.log` averages itself are right. A binned AUROC has
# other thresholds than the one that was made. Call `metric.set_dtype(torch.float32)` in `on_fit_start`.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" \
    torch==2.13.0 lightning==2.6.6 torchmetrics==1.9.0 numpy==2.4.6
PYTHONPATH=$here OMP_NUM_THREADS=1 python3 -W ignore - <<'PYTHON'
import logging

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MeanSquaredError

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.error, self.mean = MeanSquaredError(), MeanMetric()

    def training_step(self, batch, _):
        self.error(torch.zeros(1), torch.ones(1))
        self.mean(1.5)
        self.log_dict({"error": self.error, "mean": self.mean}, on_step=False, on_epoch=True)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return DataLoader(torch.zeros(1000, 1))


for words, convert in (
    ("module.bfloat16()", lambda module: module.bfloat16()),
    ("module.to(torch.bfloat16)", lambda module: module.to(torch.bfloat16)),
):
    print(f"{words:<31} states in {convert(Lit()).mean.mean_value.dtype}")

quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
found = {}
for precision in ("32-true", "bf16-true"):
    trainer = L.Trainer(max_epochs=1, precision=precision, accelerator="cpu", **quiet)
    trainer.fit(Lit())
    error, mean = (trainer.callback_metrics[name].item() for name in ("error", "mean"))
    words = f'precision="{precision}"'
    print(f"{words:<31} mean squared error {error:.3f}, mean {mean:.3f}")
    found[precision] = round(error, 3), mean
assert Lit().bfloat16().mean.mean_value.dtype == torch.float32
assert Lit().to(torch.bfloat16).mean.mean_value.dtype == torch.bfloat16
assert found == {"32-true": (1.0, 1.5), "bf16-true": (0.256, 2.0)}, found
PYTHON
