"""Under weight averaging, what counts and what stays constant is not averaged."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import nn
from torchmetrics.classification import MulticlassAUROC

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LocalGrid,
    WeightExchange,
    client_app,
)

DEVICE = {"accelerator": "cpu", "devices": 1}


@pytest.mark.parametrize(
    "callback", [EMAWeightAveraging, lambda: EMAWeightAveraging(decay=0.9), WeightAveraging]
)
def test_counters_come_from_the_raw_model_and_weights_from_the_average(kit, callback):
    bridge = FlowerBridge()
    raw = kit.fit(module=kit.fresh_module(1), max_epochs=3)
    module = kit.fit(bridge, callback(), module=kit.fresh_module(1), max_epochs=3)
    arrays = bridge.update.arrays
    assert int(arrays["norm.num_batches_tracked"]) == int(raw.norm.num_batches_tracked) == 9
    assert module.norm.num_batches_tracked == 9
    assert not torch.equal(module.layer.weight, raw.layer.weight)
    assert arrays["layer.weight"].tolist() == module.layer.weight.tolist()


def test_counters_that_stay_at_home_go_on_from_round_to_round(kit):
    exchange = WeightExchange(exclude="norm.*")
    seen = {}

    class Shows(kit.Lit):
        def on_train_start(self):
            client = self.trainer.callbacks[0].client_id
            seen.setdefault(client, []).append(int(self.norm.num_batches_tracked))

    trainer = {**DEVICE, "callbacks": [EMAWeightAveraging()]}
    client = client_app(Shows, lambda _: kit.loader(), trainer, exchange=exchange)
    server = FederatedTrainer(
        3, ExactFedAvg(fraction_evaluate=0.0), exchange=exchange, enable_progress_bar=False
    )
    server.fit(kit.Lit, LocalGrid(client, 3))
    assert seen == {client: [0, 3, 6] for client in "012"}


def with_constants(kit):
    class Constants(kit.Lit):
        """A module with a constant buffer, one that moves, a frozen weight, and metrics with thresholds."""

        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.linspace(0, 1, 50))
            self.register_buffer("seen", torch.zeros(()))
            self.frozen = nn.Parameter(torch.linspace(0, 1, 50), requires_grad=False)
            self.train_auroc = MulticlassAUROC(2, thresholds=50)
            self.val_auroc = MulticlassAUROC(2, thresholds=50)

        def training_step(self, batch, batch_idx):
            self.seen += 1
            self.train_auroc(torch.rand(9, 2), torch.arange(9) % 2)
            self.log("train_auroc", self.train_auroc)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.thresholds_at_work = self.val_auroc.thresholds.clone()
            self.val_auroc(torch.rand(9, 2), torch.arange(9) % 2)
            self.log("val_auroc", self.val_auroc)

        def val_dataloader(self):
            return kit.loader()

    return Constants


def test_constants_stay_to_the_bit_and_what_a_fit_changes_is_averaged(kit):
    bridge = FlowerBridge()
    module = with_constants(kit)()
    kit.fit(bridge, EMAWeightAveraging(decay=0.9), module=module, max_epochs=3)
    constant = torch.linspace(0, 1, 50)
    assert torch.equal(module.scale, constant)
    assert torch.equal(module.frozen, constant)
    assert bridge.update.arrays["frozen"].tolist() == constant.tolist()
    for thresholds in (module.thresholds_at_work, module.val_auroc.thresholds):
        assert torch.equal(thresholds, type(module)().val_auroc.thresholds)
    assert 0 < float(module.seen) < 9


def test_binned_metrics_are_pooled_under_averaging(kit):
    model = with_constants(kit)
    client = client_app(
        model, lambda _: kit.loader(), {**DEVICE, "callbacks": [EMAWeightAveraging(decay=0.9)]}
    )
    server = FederatedTrainer(2, enable_progress_bar=False)
    result = server.fit(model, LocalGrid(client, 3))
    assert [(len(record.accepted), record.rejected) for record in result.rounds] == [(3, ())] * 2
    assert {"train_auroc", "val_auroc", "fit_val_auroc"} <= result.rounds[-1].metrics.keys()
