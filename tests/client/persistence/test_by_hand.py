"""`StatePersistence` in a Trainer made by hand, of either Lightning: as under `client_app`."""

import importlib

import pytest
import torch
from _modules import QUIET
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LocalGrid,
    WeightExchange,
    client_app,
)
from lightning_fl_ext.client.persistence.callback import StatePersistence
from lightning_fl_ext.lightnings import NAMES

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def module_of(lightning):
    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(3, 2)
            self.head = torch.nn.Linear(2, 1)
            torch.nn.init.constant_(self.head.weight, 0.5)
            torch.nn.init.zeros_(self.head.bias)

        def forward(self, batch):
            return (self.head(self.body(batch[0]).tanh()) - batch[1]).square().mean()

        def training_step(self, batch, _):
            return self(batch)

        def validation_step(self, batch, _):
            self.log("val_loss", self(batch), batch_size=len(batch[0]))

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), 0.05)
            steps = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Lit


def data(context):
    site = int(context.node_config["partition-id"])
    x = torch.randn(8 + 4 * site, 3, generator=torch.Generator().manual_seed(site))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4)


def by_hand(lightning, exchange, root):
    app, Lit = ClientApp(), module_of(lightning)

    def run(message, context, fn):
        bridge = FlowerBridge.from_message(message, context, exchange=exchange)
        keeps = StatePersistence.from_message(bridge, message, context, root)
        with bridge.seeded():
            trainer = lightning.Trainer(max_epochs=1, callbacks=[bridge, keeps], **QUIET)
            getattr(trainer, fn)(Lit(), data(context))
        keeps.remember_round(context)
        return bridge.reply()

    app.train()(lambda message, context: run(message, context, "fit"))
    app.evaluate()(lambda message, context: run(message, context, "validate"))
    return app


def federate(lightning, client, exchange):
    trainer = FederatedTrainer(
        3, ExactFedAvg(fraction_evaluate=1.0), seed=3, enable_progress_bar=False, exchange=exchange
    )
    result = trainer.fit(module_of(lightning), LocalGrid(client, 3))
    assert not result.rejected
    return result.digest, [record.metrics["val_loss"] for record in result.rounds]


@pytest.mark.parametrize("exclude", ["head.*", ()])
@pytest.mark.parametrize("name", NAMES)
def test_by_hand_a_client_goes_on_as_under_client_app(name, exclude, tmp_path):
    lightning, exchange = importlib.import_module(name), WeightExchange(exclude=exclude)
    hand = federate(lightning, by_hand(lightning, exchange, tmp_path / "hand"), exchange)
    options = {"exchange": exchange, "keep_optimizer": tmp_path / "app"}
    app = client_app(module_of(lightning), data, QUIET, **options)
    assert hand == federate(lightning, app, exchange)
    if exclude:
        fresh = client_app(module_of(lightning), data, QUIET, exchange=exchange, keep_local=False)
        assert hand != federate(lightning, fresh, exchange)
