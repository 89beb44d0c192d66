import importlib

import numpy as np
import pytest
import torch
from _modules import QUIET
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import GateTarget, StochasticGateModule
from lightning_fl_ext.gates import gate_costs, open_probability, project_open_fraction, shrink

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]


def module_of(package="lightning.pytorch", **gate):
    base = importlib.import_module(package).LightningModule

    class LitGated(base):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 8)
            self.first = StochasticGateModule(8, **gate)
            self.middle = nn.Linear(8, 4)
            self.second = StochasticGateModule(4, **gate)

        def training_step(self, batch, _):
            out = self.second(self.middle(self.first(self.body(batch[0]).relu())))
            return (out.sum(1) - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    return LitGated()


def fit(module, callback, epochs=4, package="lightning.pytorch", batches=10, ckpt_path=None, **options):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8 * batches, 5, generator=generator)
    data = DataLoader(TensorDataset(x, x.sum(1)), batch_size=8)
    L = importlib.import_module(package)
    trainer = L.Trainer(max_epochs=epochs, callbacks=[callback], **{**QUIET, **options})
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def fraction(module):
    gates = [module.first, module.second]
    return sum(g.expected_open().item() for g in gates) / sum(g.logits.numel() for g in gates)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("target", [0.2, 0.5, 0.95])
def test_the_fit_ends_at_the_target(package, target):
    module = module_of(package)
    fit(module, GateTarget(target), package=package)
    assert fraction(module) == pytest.approx(target, abs=1e-5)


def test_gates_that_end_undecided_are_told_of(caplog):
    module = module_of()
    fit(module, GateTarget(0.21, warmup=0), epochs=1)  # 0.21 each, and none of them above one half
    assert "no gate is open more likely than not" in caplog.text
    caplog.clear()
    module.first.logits.data[0] = 9.0
    fit(module, GateTarget(0.22, warmup=0), epochs=1)
    assert "more likely than not" not in caplog.text


@pytest.mark.parametrize("estimator", ["identity", "reinmax", "concrete", "hard_concrete", "gaussian"])
def test_every_estimator_s_open_fraction_is_met(estimator):
    module = module_of(estimator=estimator)
    fit(module, GateTarget(0.3), epochs=2)
    assert fraction(module) == pytest.approx(0.3, abs=1e-5)


def test_per_layer_each_layer_reaches_it():
    module = module_of()
    callback = GateTarget(0.25, per_layer=True)
    fit(module, callback)
    assert module.first.expected_open().item() == pytest.approx(2.0, abs=1e-4)
    assert module.second.expected_open().item() == pytest.approx(1.0, abs=1e-4)
    assert callback.multiplier.keys() == {"first", "second"}


def test_costs_weigh_the_fraction():
    module = module_of()
    fit(module, GateTarget(0.4, costs={"first": 3.0, "second": 10.0}))
    cost = 3 * module.first.expected_open().item() + 10 * module.second.expected_open().item()
    assert cost / (3 * 8 + 10 * 4) == pytest.approx(0.4, abs=1e-5)


def test_the_way_is_half_a_cosine_over_the_warmup_and_then_level():
    seen = []

    class Watched(GateTarget):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append(fraction(pl_module))

    module = module_of(init_prob=0.9)
    fit(module, Watched(0.1, warmup=0.5), epochs=4, batches=10)
    steps = np.arange(1, 41)
    start = seen[0]  # the first step goes hardly any of the way
    part = np.minimum(1, steps / 20)
    expected = 0.1 + (start - 0.1) * (1 + np.cos(np.pi * part)) / 2
    assert np.allclose(seen, expected, atol=0.01)
    assert np.allclose(seen[20:], 0.1, atol=1e-5)


def test_gradient_accumulation_moves_the_gates_once_a_step():
    calls = []

    class Watched(GateTarget):
        def state_of(self, module):
            return module.first.logits.detach().clone()

        def on_train_batch_end(self, trainer, pl_module, *rest):
            before = self.state_of(pl_module)
            super().on_train_batch_end(trainer, pl_module, *rest)
            calls.append(not torch.equal(before, self.state_of(pl_module)))

    fit(module_of(), Watched(0.3), epochs=1, batches=12, accumulate_grad_batches=3)
    assert calls == [False, False, True] * 4


def test_a_resumed_fit_goes_on_along_the_same_way(tmp_path):
    first = fit(module_of(), GateTarget(0.2, warmup=1.0), epochs=4, limit_train_batches=5)
    first.save_checkpoint(tmp_path / "whole.ckpt")
    resumed = GateTarget(0.2, warmup=1.0)
    fit(module_of(), resumed, epochs=6, limit_train_batches=5, ckpt_path=tmp_path / "whole.ckpt")
    assert resumed._start[""] == pytest.approx(0.9, abs=0.05), "it began with the gates of the first fit"


@pytest.mark.parametrize(
    ("build", "target", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, "holds no `StochasticGateModule`"),
        (lambda: StochasticGateModule(2, gater=nn.Linear(2, 2)), {}, "`self.part.expected_open"),
        (lambda: StochasticGateModule(2), {"costs": {"other": 1.0}}, r"`costs` must name .*\['part'\]"),
    ],
)
def test_what_it_cannot_steer_is_refused_when_the_fit_begins(build, target, message):
    module = module_of()
    del module.first, module.second
    module.part = build()
    with pytest.raises(ValueError, match=message):
        fit(module, GateTarget(0.2, **target), epochs=1)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"open": 1.0}, "`open`"), ({"open": 0.2, "warmup": 2}, "`warmup`")]
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GateTarget(**arguments)


@pytest.mark.parametrize(("of", "per_layer"), [("parameters", False), ("multiplications", True)])
def test_on_tabular_data_the_fraction_of_what_the_net_costs_is_met(of, per_layer):
    rows, labels = load_breast_cancer(return_X_y=True)
    x = torch.tensor((rows - rows.mean(0)) / rows.std(0)).float()
    data = DataLoader(TensorDataset(x, torch.tensor(labels).float()), batch_size=32)

    class LitTabular(importlib.import_module("lightning.pytorch").LightningModule):
        def __init__(self):
            super().__init__()
            self.features = StochasticGateModule(30)
            self.body, self.units = nn.Linear(30, 32), StochasticGateModule(32)
            self.head = nn.Linear(32, 1)

        def forward(self, x):
            return self.head(self.units(self.body(self.features(x)).relu())).squeeze(1)

        def training_step(self, batch, _):
            return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

        def configure_optimizers(self):
            gates = [*self.features.parameters(), *self.units.parameters()]
            weights = [*self.body.parameters(), *self.head.parameters()]
            return torch.optim.Adam([{"params": weights, "lr": 0.01}, {"params": gates, "lr": 0.2}])

    torch.manual_seed(0)
    module = LitTabular()
    costs = gate_costs(module, x[:2], of)
    callback = GateTarget(0.2, costs=costs, per_layer=per_layer)
    trainer = importlib.import_module("lightning.pytorch").Trainer(
        max_epochs=15, callbacks=[callback], **QUIET
    )
    trainer.fit(module, data)
    gates = {"features": module.features, "units": module.units}
    spent = {name: costs[name] * gate.expected_open().item() for name, gate in gates.items()}
    whole = {name: costs[name] * gate.logits.numel() for name, gate in gates.items()}
    assert sum(spent.values()) / sum(whole.values()) == pytest.approx(0.2, abs=1e-4)
    if per_layer:
        assert {n: spent[n] / whole[n] for n in spent} == pytest.approx(
            {"features": 0.2, "units": 0.2}, abs=1e-4
        )
    with torch.no_grad():
        for gate in gates.values():
            gate.evaluation = "threshold"
        right = (module.eval()(x) > 0) == torch.tensor(labels).bool()
    assert right.float().mean() > 0.9
    small = shrink(module, x[:2])
    assert torch.allclose(small(x), module(x), atol=1e-5)


# The projection


@given(
    logits=st.lists(st.floats(-30, 30), min_size=1, max_size=20),
    target=st.floats(0.001, 0.999),
    estimator=st.sampled_from(["probability", "hard_concrete", "gaussian"]),
)
def test_any_gates_can_be_brought_to_any_fraction(logits, target, estimator):
    gate = StochasticGateModule(len(logits), estimator=estimator).double()
    gate.logits.data = torch.tensor(logits, dtype=torch.float64)
    project_open_fraction([gate], target)
    opened = open_probability(gate.probs, estimator).mean().item()
    assert opened == pytest.approx(target, abs=1e-6)


def test_the_projection_is_the_nearest_in_relative_entropy():
    """Compared with random gates of the same expected fraction."""
    gate = StochasticGateModule(6).double()
    generator = torch.Generator().manual_seed(0)
    gate.logits.data = torch.randn(6, generator=generator, dtype=torch.float64)
    before = torch.sigmoid(gate.logits.detach())
    project_open_fraction([gate], 0.3)

    def divergence(p):
        return (p * (p / before).log() + (1 - p) * ((1 - p) / (1 - before)).log()).sum()

    nearest = divergence(gate.probs.detach())
    for _ in range(50):
        other = StochasticGateModule(6).double()
        other.logits.data = gate.logits.detach() + 0.3 * torch.randn(6, generator=generator).double()
        project_open_fraction([other], 0.3)
        assert divergence(other.probs.detach()) >= nearest


@pytest.mark.parametrize("costs", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_costs_that_make_no_sense_are_refused(costs):
    with pytest.raises(ValueError, match="one positive cost"):
        project_open_fraction([StochasticGateModule(2), StochasticGateModule(2)], 0.5, costs)
