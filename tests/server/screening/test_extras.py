"""What an algorithm's clients send beside their weights, and what it makes of both, is bounded."""

import logging

import numpy as np
import pytest
import torch

from lightning_fl_ext import (
    AlgorithmStrategy,
    Ditto,
    ExactFedAvgM,
    FedDyn,
    FedNova,
    FedProx,
    LightningFLError,
    Scaffold,
)
from lightning_fl_ext.server import Reason


def answer(normalizer, size):
    """Clients of FedNova, of which client 1 sends a weight and a normalizer of its own."""

    def fit(arrays, partition, server_round):
        own, size_now = (normalizer, size) if partition == 1 else (10.0, 0.5)
        weights = {name: np.full_like(array, size_now) for name, array in arrays.items()}
        return {**weights, "algorithm/normalizer": np.array(own)}

    return fit


@pytest.mark.parametrize("size", [5e10, -5e10])
def test_a_change_that_is_large_only_per_step_leaves_its_client_out(toy, size):
    trainer = toy.make_trainer(FedNova())
    grid = toy.make_grid(3, toy.make_app(fit=answer(1e-6, size)))
    result = trainer.fit(toy.Net(), grid)
    assert [record.accepted for record in result.rounds] == [("00", "02")] * 2
    assert {(r.client_id, r.reason) for r in result.rejected} == {("01", Reason.MAGNITUDE)}
    for value in result.model.state_dict().values():
        np.testing.assert_allclose(value.numpy(), 0.5, rtol=1e-6)


def controls(arrays, partition, server_round):
    """Clients of SCAFFOLD in a landscape of quadratics, of which client 1 lies about its control variate."""
    weights = {name: array for name, array in arrays.items() if not name.startswith("algorithm/")}
    shift = {name: arrays[f"algorithm/{name}"] for name in weights}
    moved = {name: w - 0.1 * (w - 1 + shift[name]) for name, w in weights.items()}
    lie = 1e9 if partition == 1 else 0.1
    return {**moved, **{f"algorithm/{name}": np.full_like(w, lie) for name, w in weights.items()}}


def steps(arrays, partition, server_round):
    return answer(1e9, 0.5)(arrays, partition, server_round)


LIES = {"Scaffold": (Scaffold, controls, 1.0), "FedNova": (FedNova, steps, 100.0)}


@pytest.mark.parametrize("name", LIES)
def test_a_client_that_lies_beside_good_weights_is_left_out_by_the_norm_of_that(toy, name):
    make, fit, most = LIES[name]

    def run(**bound):
        trainer = toy.make_trainer(make(fraction_evaluate=0.0, **bound), max_rounds=3, max_update_norm=20.0)
        return trainer.fit(toy.Net(), toy.make_grid(4, toy.make_app(fit=fit)))

    bounded = run(max_extra_norm=most)
    assert [record.accepted for record in bounded.rounds] == [("00", "02", "03")] * 3
    said = bounded.rejected[0]
    assert (said.client_id, said.reason, said.key) == ("01", Reason.NORM, "algorithm")
    assert said.expected == f"arrays beside the weights of norm at most {most:g} (`max_extra_norm`)"
    assert all(np.abs(value.numpy()).max() < 5 for value in bounded.model.state_dict().values())
    with pytest.raises(Exception, match="no round after round 1 counts"):  # honest ones follow the liar
        run()


def test_a_limit_on_updates_that_does_not_reach_all_that_clients_send_is_said(toy, caplog):
    def told(strategy, **options):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer = toy.make_trainer(strategy, max_rounds=0, **options)
            trainer.fit(toy.Net(), toy.make_grid(3))
        return [record.getMessage() for record in caplog.records if "max_extra_norm" in record.getMessage()]

    (said,) = told(Scaffold(), max_update_norm=5.0)
    assert said.endswith("Bound that too: `Scaffold(max_extra_norm=...)`")
    assert told(Scaffold()) == told(FedDyn(0.1), max_update_norm=5.0) == []
    assert told(Scaffold(max_extra_norm=1.0), max_update_norm=5.0) == []


def far(arrays, partition, server_round):
    """Client 1 sends a huge weight in the first round; the others go back to where they want to be."""
    size = 5e10 if partition == 1 and server_round == 1 else 1.0
    return {name: np.full_like(array, size) for name, array in arrays.items()}


def test_weights_that_honest_clients_could_not_send_back_make_a_round_void(toy, caplog):
    class Beyond(AlgorithmStrategy):
        """Corrects beyond the mean, as FedDyn does."""

        def combine(self, before, mean, extras, share):
            return {name: before[name] + 4 * (mean[name] - before[name]) for name in mean}, {"seen": share}

    trainer = toy.make_trainer(Beyond(fraction_evaluate=0.0), max_rounds=3)
    result = trainer.fit(toy.Net(), toy.make_grid(3, toy.make_app(fit=far)))
    assert [record.void for record in result.rounds] == [True, False, False]
    assert "round 1 is void: Beyond makes weights of up to 6.67e+10, too large" in caplog.text
    assert all(np.abs(value.numpy()).max() < 100 for value in result.model.state_dict().values())


@pytest.mark.parametrize("normalizer", [0.0, -4.0, 1e-7, 1e10, 1e300])
def test_a_normalizer_that_no_steps_have_leaves_its_client_out(toy, normalizer):
    trainer = toy.make_trainer(FedNova(fraction_evaluate=0.0), max_rounds=1)
    trainer.fit(toy.Net(), toy.make_grid(3, toy.make_app(fit=answer(normalizer, 0.5))))
    (left_out,) = trainer.rounds[0].rejected
    assert (left_out.client_id, left_out.reason) == ("01", Reason.MAGNITUDE)


def test_a_check_that_answers_instead_of_raising_accepts_nobody(toy):
    class Asking(AlgorithmStrategy):
        def expected(self, arrays):
            return {"x": np.zeros(1)}

        def check(self, extras):
            return bool(extras["x"] > 0)

    def fit(arrays, partition, server_round):
        return {**toy.local_fit(arrays, partition, server_round), "algorithm/x": np.ones(1)}

    trainer = toy.make_trainer(Asking(fraction_evaluate=0.0), max_rounds=1)
    with pytest.raises(
        LightningFLError, match=r"`check` refuses by a ValueError, and returns nothing. Got True"
    ):
        trainer.fit(toy.Net(), toy.make_grid(3, toy.make_app(fit=fit)))


@pytest.mark.parametrize("kind", ["two halves", "server optimizer"])
def test_weights_beyond_the_model_s_dtype_make_a_round_void_and_stop_nothing(kind, toy, caplog):
    class Narrow(toy.Net):
        def __init__(self):
            super().__init__()
            self.narrow = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))

    class Beyond(AlgorithmStrategy):
        def combine(self, before, mean, extras, share):
            far = mean["narrow"].astype(np.float64) * 8
            return {**mean, "narrow": far}, {"seen": share}

    def large(arrays, partition, server_round):
        fit = toy.local_fit(arrays, partition, server_round)
        size = 6e4 if partition == 1 and server_round == 2 else 1.0
        return {**fit, "narrow": np.full_like(arrays["narrow"], size)}

    strategy = Beyond if kind == "two halves" else lambda **options: ExactFedAvgM(8.0, 0.5, **options)
    trainer = toy.make_trainer(strategy(fraction_evaluate=0.0), max_rounds=3)
    trainer.fit(Narrow(), toy.make_grid(3, toy.make_app(fit=large)))
    assert [record.void for record in trainer.rounds] == [False, True, False]
    assert "round 2 is void" in caplog.text
    assert np.isfinite(trainer.arrays["narrow"]).all()


def test_a_server_optimizer_s_step_that_honest_clients_could_not_send_back_makes_a_round_void(toy, caplog):
    trainer = toy.make_trainer(ExactFedAvgM(4.0, 0.5, fraction_evaluate=0.0), max_rounds=3)
    trainer.fit(toy.Net(), toy.make_grid(3, toy.make_app(fit=far)))
    assert [record.void for record in trainer.rounds] == [True, False, False]
    assert "round 1 is void: ExactFedAvgM makes weights of up to 6.67e+10, too large" in caplog.text
    assert all(np.abs(m).max() < 100 for m in trainer.strategy.m_t.values())


def test_a_void_round_takes_back_what_was_kept(toy):
    def kept(fit, rounds):
        trainer = toy.make_trainer(FedDyn(0.1, fraction_evaluate=0.0), max_rounds=rounds, min_accepted=3)
        trainer.fit(toy.Net(), toy.make_grid(3, toy.make_app(fit=fit)))
        return trainer.strategy.kept

    def fails_later(arrays, partition, server_round):
        if partition == 1 and server_round > 2:
            return {name: np.full_like(array, np.nan) for name, array in arrays.items()}
        return toy.local_fit(arrays, partition, server_round)

    void, before = kept(fails_later, 3), kept(toy.local_fit, 2)
    assert {name: term.tolist() for name, term in void.items()} == {
        name: term.tolist() for name, term in before.items()
    }
    assert any(term.any() for term in before.values())


@pytest.mark.parametrize("make", [lambda **o: FedProx(0.1, **o), lambda **o: FedDyn(0.1, **o), Ditto])
def test_a_bound_on_what_no_client_sends_is_refused(make):
    more = {"strength": 0.1} if make is Ditto else {}
    with pytest.raises(TypeError, match="`max_extra_norm` bounds what clients send beside their weights"):
        make(max_extra_norm=1.0, **more)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), "1"])
def test_a_bound_that_is_none_is_refused(bound):
    with pytest.raises(ValueError, match="`max_extra_norm` must be a finite number above 0"):
        Scaffold(max_extra_norm=bound)
