"""Gates and masks on a device do what they do on the processor."""

import copy
import importlib

import pytest
import torch
from _modules import QUIET
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import GateSchedule, GateTarget, MaskedModule, StochasticGateModule, shrink
from lightning_fl_ext.gates import bernoulli_sample, gate_modules, project_open_fraction
from lightning_fl_ext.gates.relaxed import RELAXED, relaxed_sample

ESTIMATORS = ["probability", "identity", "reinmax", "concrete", "hard_concrete", "gaussian"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gates_open_as_often_as_they_should_and_pass_gradients(device, estimator, dtype):
    torch.manual_seed(0)
    probs = torch.full((200_000,), 0.25, device=device, dtype=dtype, requires_grad=True)
    sample = bernoulli_sample(probs, estimator)
    sample.sum().backward()
    assert (sample.device.type, sample.dtype) == (device.type, dtype)
    assert (sample > 0.5).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert probs.grad.isfinite().all()
    assert probs.grad.float().mean() > 0


@pytest.mark.parametrize("estimator", RELAXED)
def test_relaxed_samples_are_those_of_the_processor(device, estimator):
    probs, uniform = torch.rand(2, 4000, generator=torch.Generator().manual_seed(0)).clamp(1e-3, 1 - 1e-3)
    outcomes = []
    for place in (torch.device("cpu"), device):
        p = probs.to(place, copy=True).requires_grad_()
        sample = relaxed_sample(p, uniform.to(place, copy=True), RELAXED[estimator], 0.5)
        (gradient,) = torch.autograd.grad(sample.sum(), p)
        outcomes.append((sample.detach().cpu(), gradient.cpu()))
    for here, there in zip(*outcomes, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_what_is_no_probability_is_refused(device, bad):
    with pytest.raises(ValueError, match="must lie in"):
        bernoulli_sample(torch.tensor([0.5, bad], device=device))


def gated():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), StochasticGateModule(8, dim=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), StochasticGateModule(4, groups=[i // 8 for i in range(32)]),
        nn.Linear(32, 5),
    )  # fmt: skip
    for gate in (net[2], net[6]):
        gate.logits.data = torch.linspace(-2, 2, gate.logits.numel())
        gate.evaluation = "threshold"
    return net


def test_a_gated_net_moves_shrinks_and_is_baked_there(device):
    images = torch.randn(4, 3, 8, 8)
    net = gated().eval()
    expected = net(images)
    there = copy.deepcopy(net).to(device)
    torch.testing.assert_close(there(images.to(device)).cpu(), expected, rtol=1e-3, atol=1e-3)
    small = shrink(there, images.to(device))
    assert all(p.device.type == device.type for p in small.parameters())
    torch.testing.assert_close(small(images.to(device)).cpu(), expected, rtol=1e-3, atol=1e-3)
    assert small[0].out_channels == 4
    baked = there[2].bake()
    x = torch.ones(2, 8, 1, 1, device=device)
    assert torch.equal(baked(x), there[2](x))


def test_gated_heads_are_those_of_the_processor_and_are_not_passed_by(device):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    gate = gate_modules(layer, "self_attn", on="heads", evaluation="threshold")["self_attn"]
    gate.logits.data[:2] = -3
    tokens = torch.randn(2, 5, 16)
    expected = layer(tokens)
    layer, tokens = layer.to(device), tokens.to(device)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens).cpu(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(shrink(layer, tokens)(tokens).cpu(), expected, rtol=1e-3, atol=1e-3)
    layer.train()(tokens).sum().backward()
    assert gate.logits.grad.isfinite().all()


def test_the_projection_is_that_of_the_processor(device):
    here, there = gated()[2], gated()[2].to(device)
    for gate in (here, there):
        project_open_fraction([gate], 0.2)
    torch.testing.assert_close(there.logits.cpu(), here.logits, rtol=1e-5, atol=1e-5)


def test_masks_are_drawn_and_baked_there(device):
    torch.manual_seed(0)
    masked = MaskedModule(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), seed=1).to(device)
    x = torch.randn(5, 6, device=device)
    masked(x).sum().backward()
    assert all(p.grad is not None for p in masked.scores.parameters())
    masked.evaluation = "threshold"
    torch.testing.assert_close(masked.bake()(x), masked.eval()(x))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_a_fit_reaches_its_target_in_every_precision(device, accelerator, precision):
    if device.type == "cpu" and precision == "16-mixed":
        pytest.skip("needs a CUDA device")

    class LitGated(importlib.import_module("lightning.pytorch").LightningModule):
        def __init__(self):
            super().__init__()
            self.body, self.gate = nn.Linear(6, 32), StochasticGateModule(32, estimator="hard_concrete")
            self.head = nn.Linear(32, 1)

        def training_step(self, batch, _):
            x, y = (part.to(self.body.weight.dtype) for part in batch)
            return (self.head(self.gate(self.body(x).relu())).squeeze(1) - y).float().square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

    torch.manual_seed(0)
    x = torch.randn(64, 6)
    module = LitGated()
    callbacks = [GateTarget(0.25), GateSchedule(temperature=(1.0, 0.3), penalty=(0.0, 0.01))]
    options = {**QUIET, "accelerator": accelerator, "precision": precision}
    trainer = importlib.import_module("lightning.pytorch").Trainer(
        max_epochs=3, callbacks=callbacks, **options
    )
    trainer.fit(module, DataLoader(TensorDataset(x, x.sum(1)), batch_size=16))
    assert module.gate.logits.dtype == torch.float32
    assert module.gate.expected_open().item() / 32 == pytest.approx(0.25, abs=1e-4)
