"""A frozen base of tensors that are made of others, as quantized ones are, under a head that is trained."""

import os
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FederatedTrainer, LocalGrid, WeightExchange, client_app


class Scaled(torch.Tensor):
    """Whole numbers and a scale, as quantized weights are."""

    @staticmethod
    def __new__(cls, whole, scale):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole, scale):
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self):
        return ["whole", "scale"], None

    @staticmethod
    def __tensor_unflatten__(tensors, context, outer_size, outer_stride):
        return Scaled(**tensors)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            made = cls(func(args[0].whole), func(args[0].scale))
            return return_and_correct_aliasing(func, args, kwargs or {}, made)
        return func(*(a.whole * a.scale if isinstance(a, cls) else a for a in args), **(kwargs or {}))


class Net(L.LightningModule):
    drift = 0

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(3, 4)
        whole = torch.arange(12).reshape(4, 3) % 5
        self.base.weight = nn.Parameter(Scaled(whole, torch.tensor(0.25)), requires_grad=False)
        self.head = nn.Linear(4, 1)

    def loss(self, batch):
        return self.head(self.base(batch[0]).tanh()).square().mean()

    def training_step(self, batch, _):
        self.base.weight.whole.add_(self.drift)
        return self.loss(batch)

    def validation_step(self, batch, _):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), 0.1)


class Drifting(Net):
    drift = 1


def data(context):
    return DataLoader(TensorDataset(torch.randn(10 + context.node_config["partition-id"], 3)), batch_size=4)


def federate(module):
    exchange = WeightExchange(include="head.*")
    app = client_app(module, data, {"accelerator": "cpu", "devices": 1}, exchange=exchange)
    trainer = FederatedTrainer(max_rounds=2, seed=7, exchange=exchange, enable_progress_bar=False)
    return trainer.fit(module, LocalGrid(app, num_clients=3))


def test_it_is_trained_over_and_evaluated_and_neither_stored_nor_warned_of(caplog):
    result = federate(Net)
    assert not result.rejected
    assert result.metrics["val_loss"] > 0
    assert not [r for r in caplog.records if "cannot be kept" in r.getMessage()]
    assert not list(Path(os.environ["XDG_STATE_HOME"]).rglob("*.safetensors"))


def test_if_it_changes_and_cannot_be_kept_a_warning_names_it(caplog):
    federate(Drifting)
    (said, *_) = [r.getMessage() for r in caplog.records if "cannot be kept" in r.getMessage()]
    assert "`base.weight`" in said


def test_if_it_would_travel_it_is_refused_by_name():
    trainer = FederatedTrainer(enable_progress_bar=False)
    with pytest.raises(TypeError, match=r"`base\.weight` cannot travel: .*Scaled is made of other tensors"):
        trainer.fit(Net, LocalGrid(client_app(Net, data), num_clients=3))
