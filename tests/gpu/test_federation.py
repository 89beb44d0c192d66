"""What leaves a device is what a processor would have sent."""

import copy
import importlib

import numpy as np
import pytest
import torch
from _modules import QUIET, Lit
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LocalGrid,
    client_app,
    digest,
    merge_metrics,
    pack_metrics,
)


def loader(site=0):
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(site))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_bridge_packs_the_bytes_that_the_module_ends_with(accelerator, precision):
    torch.manual_seed(0)
    module, bridge = Lit(0.01), FlowerBridge()
    options = {**QUIET, "accelerator": accelerator, "precision": precision}
    trainer = importlib.import_module("lightning.pytorch").Trainer(
        max_epochs=2, callbacks=[bridge], **options
    )
    trainer.fit(module, loader())
    ended = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    sent = bridge.update.arrays
    assert digest(sent) == digest(ended)
    assert len(bridge.ordered_results()) == 2


def test_copies_that_are_sent_are_not_written_to_by_later_epochs(accelerator):
    torch.manual_seed(0)
    module, bridge = Lit(0.01), FlowerBridge()
    options = {**QUIET, "accelerator": accelerator}
    trainer = importlib.import_module("lightning.pytorch").Trainer(
        max_epochs=3, callbacks=[bridge], **options
    )
    trainer.fit(module, loader())
    first, *_, last = bridge.results
    assert not np.array_equal(first.arrays["layer.weight"], last.arrays["layer.weight"])


def test_a_federation_is_the_same_twice(accelerator):
    digests = []
    for _ in range(2):
        trainer = FederatedTrainer(2, ExactFedAvg(fraction_evaluate=0.0), seed=3, enable_progress_bar=False)
        app = client_app(
            lambda: Lit(0.01),
            lambda context: loader(int(context.node_config["partition-id"])),
            {"accelerator": accelerator, "devices": 1, "max_epochs": 1},
        )
        trainer.fit(lambda: Lit(0.01), LocalGrid(app, 3))
        state = trainer.result.model.state_dict()
        digests.append(digest({name: value.cpu().numpy() for name, value in state.items()}))
    assert digests[0] == digests[1]


def test_metrics_pooled_from_a_device_are_those_of_all_the_data(device):
    generator = torch.Generator().manual_seed(0)
    guesses, truth = torch.randint(4, (2, 300), generator=generator)
    whole, packs = MulticlassAccuracy(4, average="macro"), []
    whole.update(guesses, truth)
    for site, rows in enumerate(torch.arange(300).split([50, 120, 130])):
        metrics = torch.nn.ModuleDict(
            {"accuracy": MulticlassAccuracy(4, average="macro"), "loss": MeanMetric()}
        ).to(device)
        metrics["accuracy"].update(guesses[rows].to(device), truth[rows].to(device))
        metrics["loss"].update(rows.float().to(device))
        packs.append(pack_metrics(metrics, client_id=f"site-{site}"))
    empty = torch.nn.ModuleDict({"accuracy": MulticlassAccuracy(4, average="macro"), "loss": MeanMetric()})
    merged = merge_metrics(copy.deepcopy(empty), packs)
    torch.testing.assert_close(merged["accuracy"].compute(), whole.compute())
    assert merged["loss"].compute().item() == pytest.approx(149.5)
