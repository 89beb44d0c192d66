"""Noise that keeps examples private must not follow from the run's seed: one warning says so if it does."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FederatedTrainer, LocalGrid, client_app


class DPOptimizer(torch.optim.SGD):
    """Like opacus's: adds noise from its generator, or from torch's own."""

    def __init__(self, parameters, generator=None):
        super().__init__(parameters, 0.1)
        self.generator = generator


class OfAKind(DPOptimizer):
    """Like those for several devices."""


def said_by(caplog, optimizer):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, _):
            return self.layer(batch[0]).square().mean()

        def configure_optimizers(self):
            return optimizer(self.parameters())

    def data(context):
        return DataLoader(TensorDataset(torch.randn(4, 2)))

    grid = LocalGrid(client_app(Net, data, {"accelerator": "cpu", "devices": 1}), num_clients=3)
    FederatedTrainer(max_rounds=2, enable_progress_bar=False).fit(Net, grid)
    return [r.getMessage() for r in caplog.records if "noise" in r.getMessage()]


@pytest.mark.parametrize("optimizer", [DPOptimizer, OfAKind])
def test_one_warning_says_so_and_what_to_do(caplog, optimizer):
    (said,) = said_by(caplog, optimizer)
    assert "The server knows" in said
    assert "noise_generator=" in said


def secret(parameters):
    return DPOptimizer(parameters, torch.Generator().manual_seed(5))


def reseeded(parameters):
    torch.seed()
    return DPOptimizer(parameters)


@pytest.mark.parametrize("optimizer", [secret, reseeded, torch.optim.Adam])
def test_a_generator_of_its_own_another_seed_or_another_optimizer_is_no_matter(caplog, optimizer):
    assert said_by(caplog, optimizer) == []
