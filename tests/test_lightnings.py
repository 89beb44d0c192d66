"""Modules and data of `lightning.pytorch` and of `pytorch_lightning`, alike and mixed."""

import importlib

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LightningFLError,
    LocalGrid,
    RoundCallback,
    client_app,
    run_local,
    server_app,
)
from lightning_fl_ext.lightnings import NAMES, data_for, lightning_name, lightning_of, overrides

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
CPU = {"accelerator": "cpu", "devices": 1}


def of(name):
    return importlib.import_module(name)


def rows(count=10, seed=0):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def module_of(name):
    class Lit(of(name).LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            batch = batch if isinstance(batch, list) else batch["a"]
            loss = (self.layer(batch[0]) - batch[1]).square().mean()
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", (self.layer(batch[0]) - batch[1]).square().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.1)

    return Lit


def data_of(name):
    class Data(of(name).LightningDataModule):
        seen = ()

        def setup(self, stage):
            self.seen = (*self.seen, stage)
            assert self.trainer is not None

        def train_dataloader(self):
            return DataLoader(rows(), 4)

        def val_dataloader(self):
            return DataLoader(rows(6, seed=1), 4)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

    return Data


def federate(module, data, evaluate=None, **options):
    trainer = FederatedTrainer(max_rounds=2, seed=3, enable_progress_bar=False)
    client = client_app(module, lambda context: data(), CPU, **options)
    run_local(server_app(module, trainer, evaluate=evaluate), client, num_clients=3)
    return trainer.result


@pytest.mark.parametrize("data", NAMES)
@pytest.mark.parametrize("module", NAMES)
def test_every_pair_gives_the_same_bytes_and_metrics(module, data, tmp_path):
    alike = federate(module_of(NAMES[0]), data_of(NAMES[0]), data_of(NAMES[0])())
    mixed = federate(module_of(module), data_of(data), data_of(data)(), keep_optimizer=tmp_path / "kept")
    fresh = federate(module_of(module), data_of(data), data_of(data)())
    assert fresh.digest == alike.digest
    assert fresh.metrics == alike.metrics
    assert {"val_loss", "server_val_loss"} <= fresh.metrics.keys()
    assert mixed.digest != alike.digest  # Adam went on where it was
    assert not mixed.rejected


@pytest.mark.filterwarnings("ignore:Trying to infer")  # Lightning itself, for what it logs
@pytest.mark.parametrize("data", NAMES)
@pytest.mark.parametrize("module", NAMES)
def test_combined_loaders_count_each_of_their_loaders(module, data):
    def loaders():
        parts = {"a": DataLoader(rows(4), 4), "b": DataLoader(rows(20), 20)}
        return of(f"{data}.utilities.combined_loader").CombinedLoader(parts, "max_size")

    assert lightning_name(loaders(), "CombinedLoader") == data
    counts = []

    class Counts(RoundCallback):
        def on_reply(self, trainer, reply):
            counts.append(reply.num_examples)

    client = client_app(module_of(module), lambda _: loaders(), CPU)
    strategy = ExactFedAvg(fraction_evaluate=0.0)
    trainer = FederatedTrainer(1, strategy, callbacks=[Counts()], enable_progress_bar=False)
    trainer.fit(module_of(module), LocalGrid(client, 2))
    assert counts == [24, 24]


def test_names():
    for name in NAMES:
        module, data = module_of(name)(), data_of(name)()
        assert lightning_of(module) is of(name)
        assert overrides(module, "validation_step")
        assert not overrides(module, "test_step")
        assert lightning_name(module, "LightningDataModule") is None
        assert lightning_name(torch.compile(module), "LightningModule") == name
        assert data_for(of(name), data) is data
    with pytest.raises(TypeError, match=r"of `lightning.pytorch` or of `pytorch_lightning`\. Got .*Linear"):
        lightning_of(torch.nn.Linear(1, 1))


def test_only_what_the_data_module_has_is_handed_on():
    adapted = data_for(of(NAMES[0]), data_of(NAMES[1])())
    assert overrides(adapted, "train_dataloader")
    assert not overrides(adapted, "predict_dataloader")


def test_a_version_whose_trainers_refuse_callbacks_of_the_other_name_is_named(monkeypatch):
    lightning = of("pytorch_lightning")
    monkeypatch.setattr(lightning, "__version__", "2.5.6")
    with pytest.raises(LightningFLError, match=r"2\.5\.6 takes no callbacks.*pytorch-lightning>=2\.6"):
        lightning_of(module_of("pytorch_lightning")())
    monkeypatch.setattr(lightning, "__version__", "2.6.0")
    assert lightning_of(module_of("pytorch_lightning")()) is lightning
