import importlib

import numpy as np
import pytest
import torch
from _modules import QUIET
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import GateSchedule, StochasticGateModule

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")


def module_of(package="lightning.pytorch", penalty=0.0, **gate):
    base = importlib.import_module(package).LightningModule

    class LitGated(base):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 8)
            self.gate = StochasticGateModule(8, **gate)
            self.head = nn.Linear(8, 1)
            self.temperatures, self.shown = [], []

        def training_step(self, batch, _):
            self.temperatures.append(self.gate.temperature)
            out = self.head(self.gate(self.body(batch[0]).relu())).squeeze(1)
            loss = (out - batch[1]).square().mean()
            return loss + penalty * self.gate.expected_open()

        def on_train_batch_end(self, *_):
            self.shown.append({name: float(v) for name, v in self.trainer.progress_bar_metrics.items()})

        def test_step(self, batch, batch_idx):
            self.temperatures.append(self.gate.temperature)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    return LitGated()


def loader(batches=3):
    x = torch.randn(8 * batches, 5, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1)), batch_size=8)


def fit(module, *callbacks, epochs=4, package="lightning.pytorch", ckpt_path=None, **options):
    trainer = importlib.import_module(package).Trainer(
        max_epochs=epochs, callbacks=[*callbacks], **{**QUIET, **options}
    )
    torch.manual_seed(5)
    trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(("shape", "expected"), [
    ("linear", [2.0, 1.4, 0.8, 0.2]),
    ("cosine", [2.0, 1.55, 0.65, 0.2]),
    ("exponential", [2.0, 2 * 0.1 ** (1 / 3), 2 * 0.1 ** (2 / 3), 0.2]),
])  # fmt: skip
def test_the_temperature_goes_from_the_first_value_to_the_last(package, shape, expected):
    module = module_of(package, estimator="hard_concrete")
    fit(module, GateSchedule(temperature=(2.0, 0.2), shape=shape), package=package)
    assert np.allclose(module.temperatures[::3], expected)
    assert np.allclose([shown["gate_temperature"] for shown in module.shown][::3], expected)


@pytest.mark.parametrize("estimator", ["probability", "hard_concrete"])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}])
def test_the_penalty_is_that_of_a_term_in_the_loss(estimator, options):
    inside = module_of(penalty=0.03, estimator=estimator)
    fit(inside, **options)
    outside = module_of(estimator=estimator)
    fit(outside, GateSchedule(penalty=(0.03, 0.03)), **options)
    for one, two in zip(inside.parameters(), outside.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_the_penalty_grows_and_is_shown():
    module = module_of()
    fit(module, GateSchedule(penalty=(0.0, 0.3), shape="linear"))
    assert np.allclose([shown["gate_penalty"] for shown in module.shown][::3], [0.0, 0.1, 0.2, 0.3])


def test_gates_that_are_frozen_or_in_no_optimizer_are_let_be():
    module = module_of()
    module.gate.logits.requires_grad_(False)
    before = module.gate.logits.clone()
    fit(module, GateSchedule(penalty=(0.5, 0.5)))
    assert torch.equal(module.gate.logits, before)


def test_a_federation_goes_one_way_over_all_rounds():
    seen = []
    for number in (1, 2, 3):
        module = module_of(estimator="concrete")
        fit(module, GateSchedule(temperature=(1.0, 0.0625), shape="exponential", round=(number, 3)), epochs=2)
        seen += module.temperatures[::3]
    assert np.allclose(seen, [0.0625 ** (k / 5) for k in range(6)])


def test_a_resumed_fit_and_a_validated_checkpoint_have_its_values(tmp_path):
    def make():
        return GateSchedule(temperature=(2.0, 0.5), shape="linear")

    first = fit(module_of(estimator="concrete"), make(), epochs=7, limit_train_batches=1, max_steps=3)
    first.save_checkpoint(tmp_path / "half.ckpt")
    module = module_of(estimator="concrete")
    fit(module, make(), epochs=7, limit_train_batches=1, ckpt_path=tmp_path / "half.ckpt")
    assert np.allclose(module.temperatures, [1.25, 1.0, 0.75, 0.5])
    trainer = importlib.import_module("lightning.pytorch").Trainer(callbacks=[make()], **QUIET)
    module = module_of(estimator="concrete")
    trainer.test(module, loader(), ckpt_path=tmp_path / "half.ckpt", verbose=False, weights_only=True)
    assert module.temperatures[0] == pytest.approx(1.5)


def test_one_epoch_alone_has_the_last_value():
    assert GateSchedule(penalty=(0.0, 1.0)).at(0, 1) == {"penalty": 1.0}


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "needs a `temperature` or a `penalty`"),
    ({"temperature": (1.0, 0.0)}, "`temperature` must be two positive numbers"),
    ({"penalty": (-1.0, 0.0)}, "`penalty` must be two numbers from 0 on"),
    ({"penalty": (0.0, 1.0), "shape": "exponential"}, "`penalty` must be two positive numbers"),
    ({"penalty": (0.0, float("nan"))}, "`penalty` must be two numbers"),
    ({"penalty": (0.0, 1.0), "shape": "square"}, "`shape` must be one of linear, cosine, exponential"),
    ({"penalty": (0.0, 1.0), "round": (4, 3)}, "`round` must be the round"),
])  # fmt: skip
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GateSchedule(**arguments)


@pytest.mark.parametrize(("gate", "schedule", "options", "message"), [
    ({}, {"temperature": (1.0, 0.1)}, {}, "needs gates with one of the estimators concrete"),
    ({"gater": nn.Linear(8, 8)}, {"penalty": (0.0, 0.1)}, {}, r"Add `self.gate.expected_open\(\)`"),
    ({}, {"penalty": (0.0, 0.1)}, {"epochs": -1, "max_steps": 2}, "give the Trainer `max_epochs`"),
])  # fmt: skip
def test_what_it_cannot_lead_is_refused_when_the_fit_begins(gate, schedule, options, message):
    with pytest.raises(ValueError, match=message):
        fit(module_of(**gate), GateSchedule(**schedule), **options)
