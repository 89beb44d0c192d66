"""Layers that `configure_model` builds are part of the global model; those of `setup` cannot be."""

import logging

import lightning.pytorch as L
import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import nn

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LightningFLError,
    client_app,
    run_local,
    server_app,
)
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.server.metrics.central_evaluation import evaluate_centrally

pytestmark = pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")


def late(base, hook):
    class Late(base):
        def __init__(self):
            super().__init__()
            self.layer = None

        def training_step(self, batch, batch_idx):
            return (self.layer(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def build(self, stage=None):
        self.layer = self.layer or nn.Linear(3, 1)

    setattr(Late, hook, build)
    return Late


def federate(kit, model, server=None, max_rounds=2):
    strategy = ExactFedAvg(fraction_evaluate=0.0)
    trainer = FederatedTrainer(max_rounds, strategy, seed=7, enable_progress_bar=False)

    def data(context):
        return kit.loader(n=10 + 4 * context.node_config["partition-id"])

    client = client_app(model, data, {"accelerator": "cpu"})
    run_local(server_app(server or model, trainer), client, num_clients=3)
    return trainer


@pytest.mark.parametrize("lightning", [L, pytorch_lightning], ids=lambda one: one.__name__)
def test_what_configure_model_builds_is_averaged(kit, lightning, monkeypatch):
    """Against numpy's mean of what the clients handed in."""
    sent, reply = [], FlowerBridge.reply
    monkeypatch.setattr(FlowerBridge, "reply", lambda self: (sent.append(self.update), reply(self))[1])
    trainer = federate(kit, late(lightning.LightningModule, "configure_model"), max_rounds=1)
    assert sorted(update.num_examples for update in sent) == [10, 14, 18]
    weights = [update.num_examples for update in sent]
    for name in ("layer.weight", "layer.bias"):
        mean = np.average([update.arrays[name] for update in sent], axis=0, weights=weights)
        np.testing.assert_allclose(trainer.arrays[name], mean, rtol=1e-6)


def test_where_configure_model_needs_a_trainer_the_server_says_so_and_takes_what_there_is(kit, caplog):
    class Sharded(late(L.LightningModule, "configure_model")):
        def configure_model(self):
            super().configure_model()
            self.trainer.strategy.setup_environment()

    with caplog.at_level(logging.WARNING):
        trainer = federate(kit, late(L.LightningModule, "configure_model"), Sharded)
    assert list(trainer.arrays) == ["layer.weight", "layer.bias"]
    said = [record.message for record in caplog.records if "configure_model" in record.message]
    assert len(said) == 1
    assert said[0].startswith("`configure_model` of `Sharded` raised RuntimeError: ")


def test_what_setup_builds_is_refused_with_the_remedy(kit):
    class Late(late(L.LightningModule, "setup")):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(LightningFLError, match="builds in `setup` are not on the server: build them in"):
        federate(kit, Late)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.parametrize("lightning", [L, pytorch_lightning], ids=lambda one: one.__name__)
def test_the_server_judges_the_global_weights_whatever_a_hook_does_to_them(lightning, hook):
    """As a `setup` that loads pretrained weights does, and a `configure_model` that builds anew each time."""

    class Overwrites(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def validation_step(self, batch, batch_idx):
            self.log("weight", self.layer.weight.mean(), batch_size=1)

        test_step = validation_step

    def overwrite(self, stage=None):
        nn.init.constant_(self.layer.weight, 7.0)

    setattr(Overwrites, hook, overwrite)
    module = Overwrites()
    nn.init.constant_(module.layer.weight, 2.0)
    for stage in ("validate", "test"):
        loader = torch.utils.data.DataLoader(torch.zeros(1, 3))
        assert evaluate_centrally(module, loader, stage=stage) == {"server_weight": 2.0}
    assert module.layer.weight.mean() == 2.0
