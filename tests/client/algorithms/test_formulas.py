"""Each algorithm against its paper's formula, in a whole federation of real fits."""

import _quadratic
import numpy as np
import pytest
from _quadratic import REFERENCES, Quadratic, app, fedavg, fednova, optimum, run, scaffold, weights

from lightning_fl_ext import ExactFedAvg, FedDyn, FedNova, FedProx, LightningFLError, Scaffold

STRATEGIES = {
    "fedprox": lambda **options: FedProx(0.3, **options),
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": lambda **options: FedDyn(0.2, **options),
}


@pytest.fixture(params=STRATEGIES)
def name(request):
    return request.param


def sampled(trainer):
    """Whose updates counted in each round."""
    return [[int(client) for client in record.accepted] for record in trainer.rounds if not record.void]


def assert_close(trainer, reference):
    np.testing.assert_allclose(weights(trainer), reference, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rounds_are_those_of_the_formula(name, fraction, tmp_path):
    trainer = run(STRATEGIES[name](fraction_train=fraction), app(keep_local=tmp_path))
    assert {len(clients) for clients in sampled(trainer)} == {4 * fraction}
    assert_close(trainer, REFERENCES[name](sampled(trainer)))
    assert np.abs(weights(trainer) - fedavg(sampled(trainer))).max() > 1e-3


def test_scaffold_s_step_has_the_server_s_rate_and_buffers_have_none(tmp_path):
    trainer = run(Scaffold(server_learning_rate=0.5), app(keep_local=tmp_path))
    assert_close(trainer, scaffold(sampled(trainer), rate=0.5))
    plain = run(ExactFedAvg(), app(keep_local=tmp_path), rounds=1)
    halved = run(Scaffold(server_learning_rate=0.5), app(keep_local=tmp_path), rounds=1)
    assert halved.arrays["seen"] == plain.arrays["seen"] > 0


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_fednova_s_normalizer_under_momentum_is_the_paper_s(momentum, tmp_path):
    trainer = run(FedNova(), app(lambda: Quadratic(momentum), keep_local=tmp_path))
    assert_close(trainer, fednova(sampled(trainer), momentum))


def test_the_formulas_correct_drift_up_to_the_known_optimum(monkeypatch):
    monkeypatch.setattr(_quadratic, "BATCH", 99)  # one batch a client: without noise, drift is all there is
    monkeypatch.setattr(_quadratic, "EPOCHS", 5)
    everyone = [range(4)] * 60
    assert np.abs(fedavg(everyone) - optimum()).max() > 1e-2
    for formula in (scaffold, REFERENCES["feddyn"]):
        np.testing.assert_allclose(formula(everyone), optimum(), rtol=1e-3)


def test_one_client_under_scaffold_is_plain_sgd_to_the_bit(tmp_path):
    class Single(Quadratic):  # the exact sum holds float32 gradients of usual size to the last bit
        def __init__(self):
            super().__init__()
            self.float()

        def loss(self, batch):
            return super().loss([part.float() for part in batch])

    def digest(strategy, folder):
        client = app(Single, keep_local=tmp_path / folder)
        return run(strategy, client, clients=1, model=Single).result.digest

    assert digest(Scaffold(), "scaffold") == digest(ExactFedAvg(), "plain")


def test_no_arrival_order_changes_a_bit(name, tmp_path):
    def digest(arrival, folder):
        client = app(keep_local=tmp_path / folder)
        return run(STRATEGIES[name](), client, rounds=2, grid={"arrival": arrival}).result.digest

    orders = {
        "sent": None,
        "back": lambda messages: messages[::-1],
        "other": lambda messages: messages[2:] + messages[:2],
    }
    assert len({digest(order, folder) for folder, order in orders.items()}) == 1


def test_fednova_refuses_an_optimizer_that_has_no_normalizer(tmp_path):
    import torch

    class Adam(Quadratic):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    with pytest.raises(LightningFLError, match=r"defined for one SGD.*Got Adam"):
        run(FedNova(), app(Adam, keep_local=tmp_path))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedProx(-1.0), "`mu` must be a finite number of at least 0"),
        (lambda: FedDyn(0.0), "`alpha` must be a finite number above 0"),
        (lambda: FedDyn(float("nan")), "`alpha` must be"),
        (lambda: Scaffold(True), "`server_learning_rate` must be"),
    ],
)
def test_a_strength_that_is_none_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
