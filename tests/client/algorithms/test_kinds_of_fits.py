"""Each algorithm is that of its formula in every kind of fit, or refuses it by name."""

import _quadratic
import numpy as np
import pytest
import torch
from _quadratic import REFERENCES, Quadratic, app, handwritten, run, weights
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_fl_ext import FedDyn, FedNova, FedProx, LightningFLError, Scaffold

STRATEGIES = {
    "fedprox": lambda: FedProx(0.3),
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": lambda: FedDyn(0.2),
}
ROUNDS = [range(4)] * 2


class Manual(Quadratic):
    """Steps its optimizers itself. The loss is a sum over parameters, so each step is its own."""

    automatic_optimization = False

    def training_step(self, batch, _):
        for optimizer in np.atleast_1d(self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()


class Several(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD([part], _quadratic.RATE) for part in (self.head, self.tail)]


def half():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


KINDS = {
    "32-true": (Quadratic, lambda: {"precision": "32-true"}),
    "bf16-mixed": (Quadratic, lambda: {"precision": "bf16-mixed"}),
    "16-mixed": (Quadratic, half),
    "manual": (Manual, dict),
    "several optimizers": (Several, dict),
}


@pytest.fixture(params=STRATEGIES)
def name(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_two_rounds_are_those_of_the_formula(name, kind, tmp_path):
    model, options = KINDS[kind]
    client = app(model, lambda round: {**_quadratic.CPU, "max_epochs": 2, **options()}, keep_local=tmp_path)
    if (name, kind) == ("fednova", "several optimizers"):
        with pytest.raises(LightningFLError, match=r"FedNova.*is defined for one SGD.*Got SGD, SGD"):
            run(STRATEGIES[name](), client, model=model, rounds=1)
        return
    trainer = run(STRATEGIES[name](), client, model=model, rounds=2)
    np.testing.assert_allclose(weights(trainer), REFERENCES[name](ROUNDS), rtol=1e-6)


def test_accumulated_batches_are_one_step_of_the_formula(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_quadratic, "SIZES", (8, 16, 8, 24))
    client = app(trainer={"accumulate_grad_batches": 2}, keep_local=tmp_path)
    trainer = run(STRATEGIES[name](), client, rounds=2)
    by_fours = REFERENCES[name](ROUNDS)
    monkeypatch.setattr(_quadratic, "BATCH", 8)
    np.testing.assert_allclose(weights(trainer), REFERENCES[name](ROUNDS), rtol=1e-9)
    assert np.abs(weights(trainer) - by_fours).max() > 1e-3


def test_a_client_written_by_hand_has_the_half(name, kit):
    trainer = run(STRATEGIES[name](), handwritten(kit), rounds=2)
    np.testing.assert_allclose(weights(trainer), REFERENCES[name](ROUNDS), rtol=1e-9)


def test_lightning_takes_bfloat16_for_16_mixed_on_a_processor_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        trainer = run(Scaffold(), app(trainer={"precision": "16-mixed"}, keep_local=tmp_path), rounds=1)
    np.testing.assert_allclose(weights(trainer), REFERENCES["scaffold"](ROUNDS[:1]), rtol=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "feddyn", "fednova"])
def test_complex_parameters_are_refused_by_name(name, tmp_path):
    class Complex(Quadratic):
        def __init__(self):
            super().__init__()
            self.phase = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))

        def loss(self, batch):
            return super().loss(batch) + self.phase.abs().sum()

    with pytest.raises(LightningFLError, match=f"`{name}`.*is defined for real .* Got the complex `phase`"):
        run(STRATEGIES[name](), app(Complex, keep_local=tmp_path), model=Complex, rounds=1)


def test_feddyn_s_terms_outlive_bfloat16(tmp_path):
    """They are small beside the weights, which true bfloat16 holds in eight bits."""
    from lightning_fl_ext.files import tensors_from_bytes

    client = app(trainer={"precision": "bf16-true"}, keep_local=tmp_path)
    run(FedDyn(0.01), client, rounds=2)
    for path in tmp_path.glob("*/*/round-00002/tensors.safetensors"):
        term = tensors_from_bytes(path.read_bytes())["state.head"]
        assert term.dtype == torch.float32
        assert (term != term.bfloat16().float()).any()
