"""Adapters travel and the base stays: LoRA, DoRA and IA3 by hand, with the base on `meta` on the server."""

import os
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, LocalGrid, WeightExchange, client_app

DEVICE = {"accelerator": "cpu", "devices": 1}
SIZE, CLIENTS = 32, 3


class LoRA(nn.Module):
    """Hu et al., 2021: a low-rank update beside a frozen layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, SIZE) / 2)
        self.lora_b = nn.Parameter(torch.zeros(SIZE, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class DoRA(LoRA):
    """Liu et al., 2024: the direction by LoRA, and a magnitude of each column."""

    def __init__(self, base):
        super().__init__(base)
        self.magnitude = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        weight = self.base.weight + self.lora_b @ self.lora_a
        return x @ (self.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)).T + self.base.bias


class IA3(nn.Module):
    """Liu et al., 2022: a learned scale of each activation."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(SIZE))

    def forward(self, x):
        return self.base(x) * self.scale


RECIPES = {
    "lora": (LoRA, ("*.lora_*",), 4 * SIZE),
    "dora": (DoRA, ("*.lora_*", "*.magnitude"), 5 * SIZE),
    "ia3": (IA3, ("*.scale",), SIZE),
}


def lit(adapter, device=None, new_head=False):
    class Lit(L.LightningModule):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)  # stands for pretrained weights
                base = nn.Linear(SIZE, SIZE, device=device)
                head = nn.Linear(SIZE, 1, device=device).requires_grad_(False)
            self.body = adapter(base)
            self.head = nn.Linear(SIZE, 1) if new_head else head

        def training_step(self, batch, batch_idx):
            return (self.head(self.body(batch[0]).tanh()) - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), 0.01)

    return Lit


def loader(context):
    rng = np.random.default_rng(context.node_config["partition-id"])
    n = 12 + 4 * context.node_config["partition-id"]
    x = torch.from_numpy(rng.normal(size=(n, SIZE)).astype(np.float32))
    return DataLoader(TensorDataset(x, x[:, :1].sin()), batch_size=4)


def federate(model, server_model, exchange, **options):
    trainer = FederatedTrainer(
        2, ExactFedAvg(fraction_evaluate=0.0), exchange=exchange, enable_progress_bar=False
    )
    trainer.fit(
        server_model, LocalGrid(client_app(model, loader, DEVICE, exchange=exchange, **options), CLIENTS)
    )
    assert not [record.rejected for record in trainer.rounds if record.rejected], trainer.rounds
    return trainer


def stored():
    return sum(p.stat().st_size for p in Path(os.environ["XDG_STATE_HOME"]).rglob("*") if p.is_file())


@pytest.mark.parametrize(("adapter", "include", "numbers"), RECIPES.values(), ids=RECIPES)
def test_adapters_alone_travel_and_nothing_is_stored(adapter, include, numbers):
    exchange = WeightExchange(include=include)
    trainer = federate(lit(adapter), lit(adapter, "meta"), exchange)
    assert sum(array.size for array in trainer.arrays.values()) == numbers
    for record in trainer.rounds:
        for way in ("bytes_up", "bytes_down"):
            assert 0 <= record.metrics[way] - CLIENTS * 4 * numbers < CLIENTS * 200 * len(trainer.arrays)
    assert stored() == 0
    assert trainer.model.body.base.weight.is_meta
    assert all(
        not tensor.is_meta for name, tensor in trainer.model.state_dict().items() if name in trainer.arrays
    )


def test_the_mean_is_that_of_the_adapters_that_clients_trained():
    handed_in = {}
    model = lit(LoRA)

    class Shows(model):
        def on_fit_end(self):
            client = self.trainer.callbacks[0].client_id
            handed_in[client] = (
                self.body.lora_b.detach().double().clone(),
                len(self.trainer.train_dataloader.dataset),
            )

    trainer = federate(Shows, lit(LoRA, "meta"), WeightExchange(include="*.lora_*"))
    total = sum(n for _, n in handed_in.values())
    expected = sum(weights * n for weights, n in handed_in.values()) / total
    torch.testing.assert_close(trainer.model.body.lora_b.double(), expected, rtol=0, atol=1e-7)


def test_a_new_head_beside_adapters_is_kept_and_the_base_is_not():
    heads = {}
    model = lit(LoRA, new_head=True)

    class Shows(model):
        def on_train_start(self):
            heads.setdefault(self.trainer.callbacks[0].client_id, []).append(
                self.head.weight.detach().clone()
            )

        def on_train_end(self):
            heads[self.trainer.callbacks[0].client_id].append(self.head.weight.detach().clone())

    federate(Shows, lit(LoRA, "meta", new_head=True), WeightExchange(include="*.lora_*"))
    assert len(heads) == CLIENTS
    for _, after_one, before_two, _ in heads.values():
        assert torch.equal(after_one, before_two)
    assert 0 < stored() < CLIENTS * 2 * 4 * SIZE * SIZE


def test_with_the_optimizer_kept_the_frozen_base_is_not_stored():
    federate(lit(LoRA), lit(LoRA, "meta"), WeightExchange(include="*.lora_*"), keep_optimizer=True)
    moments = 2 * 4 * 4 * SIZE
    assert stored() < CLIENTS * 2 * (moments + 4000)
