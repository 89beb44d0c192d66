#!/usr/bin/env bash
# torch 2.13.0 with lightning 2.6.6: `spectral_norm` keeps two singular vectors in buffers, and in evaluation divides by
# what they give, unseen. Averaging buffers (AveragedModel(use_buffers=True), Lightning's EMAWeightAveraging as it is
# made by default, or a mean of clients' state dicts) makes vectors of a length below 1 that fit no weight. The averaged
# weight then has a largest singular value that is not 1 but many times as large, in evaluation, where it is judged and
# used. A training step would bring the vectors nearer again.
#
# Output seen (the largest singular value in evaluation, which the norm is to make 1; digits differ by processor):
#   the trained module                            1.1
#   AveragedModel(use_buffers=True)               46
#   AveragedModel()                               1.1
#   EMAWeightAveraging() of Lightning             17
#   a mean of 5 modules trained on other data     14
#
# Why it matters: exponential averages are how generators and critics with spectral norm are judged; a bound on their
# gain is why one has it. The documentation recommends `use_buffers=True` for batch norm, whose buffers have a mean. Take
# the averaged module through some forward passes in training mode before it is used.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" torch==2.13.0 lightning==2.6.6 numpy==2.4.6
PYTHONPATH=$here OMP_NUM_THREADS=1 python3 -W ignore - <<'PYTHON'
import copy
import logging

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def data(seed):
    random = torch.Generator().manual_seed(seed)
    x, way = torch.randn(9600, 64, generator=random), torch.randn(64, 64, generator=random)
    return DataLoader(TensorDataset(x, x @ way), batch_size=32)


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = spectral_norm(nn.Linear(64, 64))
        self.averages = []

    def training_step(self, batch, _):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)

    def on_train_batch_end(self, *_):
        for average in self.averages:
            average.update_parameters(self.layer)


def gain(layer):
    return torch.linalg.matrix_norm(layer.eval().weight.detach(), 2).item()


def fit(module, seed=1, callbacks=()):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(max_epochs=1, callbacks=[*callbacks], accelerator="cpu", **quiet).fit(module, data(seed))
    return module.layer


found, trained = {}, Lit()
trained.averages = averages = [AveragedModel(trained.layer, use_buffers=use) for use in (True, False)]
found["the trained module"] = gain(fit(trained))
found["AveragedModel(use_buffers=True)"], found["AveragedModel()"] = (gain(average.module) for average in averages)
found["EMAWeightAveraging() of Lightning"] = gain(fit(Lit(), callbacks=[EMAWeightAveraging()]))
states = [fit(Lit(), seed).state_dict() for seed in range(5)]
mean = copy.deepcopy(Lit().layer)
mean.load_state_dict({name: sum(state[name] for state in states) / 5 for name in states[0]})
found["a mean of 5 modules trained on other data"] = gain(mean)
for words, value in found.items():
    print(f"{words:<45} {value:.2g}")
single, averaged, parameters, ema, clients = found.values()
assert max(single, parameters) < 2 and min(averaged, ema, clients) > 3, found
PYTHON
