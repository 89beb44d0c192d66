"""Spectral norms whose singular vectors were averaged measure their weights anew."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FederatedTrainer, FlowerBridge, LocalGrid, client_app
from lightning_fl_ext.wire.loading import load_weights, settle_spectral_norms

NORMS = {"parametrized": parametrizations.spectral_norm, "by a hook": old_spectral_norm}


def gain(module):
    """The largest singular value of the layer as it computes in evaluation, which the norm is to make 1."""
    module.eval()
    with torch.no_grad():
        return torch.linalg.matrix_norm(module(torch.eye(32)) - module(torch.zeros(32, 32)), 2).item()


def make(norm):
    class Normed(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = norm(nn.Linear(32, 32))
            self.gains = []

        def forward(self, x):
            return self.layer(x)

        def training_step(self, batch, _):
            return (self(batch[0]) - batch[1]).square().mean()

        def validation_step(self, batch, _):
            self.log("gain", gain(self))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.05)

    return Normed


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        rng = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
        x, way = torch.randn(400, 32, generator=rng), torch.randn(32, 32, generator=rng)
        self.data = TensorDataset(x, x @ way)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=20)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=400)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_mean_of_clients_has_the_gain_that_its_norm_says(norm):
    trainer = FederatedTrainer(max_rounds=2, enable_progress_bar=False, seed=7)
    result = trainer.fit(make(norm), LocalGrid(client_app(make(norm), Data, {"accelerator": "cpu"}), 3))
    assert gain(result.model) == pytest.approx(1.0, abs=0.03)
    assert trainer.callback_metrics["gain"] == pytest.approx(1.0, abs=0.03)
    vectors = [array for name, array in trainer.arrays.items() if name.endswith("_u")]
    assert [float((v**2).sum()) < 0.99 for v in vectors] == [True]  # or the case shows nothing


def test_weights_averaged_in_a_fit_have_it_too(kit):
    module, bridge = make(parametrizations.spectral_norm)(), FlowerBridge()
    data = Data(kit.context())
    kit.trainer(bridge, EMAWeightAveraging(decay=0.9)).fit(module, data)
    assert gain(module) == pytest.approx(1.0, abs=0.03)
    other = make(parametrizations.spectral_norm)()
    other.load_state_dict({name: torch.tensor(array) for name, array in bridge.update.arrays.items()})
    assert gain(other) == pytest.approx(1.0, abs=0.03)


def test_what_was_not_averaged_is_left_alone():
    module = nn.Sequential(
        parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(4, 3))),
        old_spectral_norm(nn.Conv1d(2, 3, 2)),
        parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.Linear(2, 2),
    )
    for vector in module.buffers():  # so that one more step would be seen
        vector.copy_(nn.functional.normalize(torch.linspace(1, 2, len(vector)), dim=0))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load_weights(module, before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_norm_after_another_parametrization_measures_what_that_gives():
    layer = parametrizations.spectral_norm(parametrizations.weight_norm(nn.Linear(8, 6)))
    steps = layer.parametrizations.weight
    steps.original0.data *= torch.linspace(0.2, 3.0, 6)[:, None]
    steps[1]._u *= 0.5
    settle_spectral_norms(layer)
    assert torch.linalg.matrix_norm(layer.eval().weight, 2).item() == pytest.approx(1.0, abs=0.02)
    assert not steps[1].training
