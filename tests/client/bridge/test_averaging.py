"""Under weight averaging, what counts is not averaged."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

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
