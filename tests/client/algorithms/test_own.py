"""An algorithm of one's own, and what is said where its two halves are not as they should be."""

import numpy as np
import pytest
import torch
from _quadratic import BATCH, EPOCHS, RATE, app, examples, mean, run, weights

from lightning_fl_ext import AlgorithmStrategy, ClientAlgorithm, LightningFLError


class Drift(ClientAlgorithm):
    """Pulls back by all the way that the client has ever gone, and sends how far it went."""

    name = "drift"
    keeps = True

    def on_fit_start(self, fit):
        self.start = {name: p.detach().clone() for name, p in fit.parameters.items()}
        self.gone = {name: fit.kept.get(name, torch.zeros_like(p)) for name, p in fit.parameters.items()}

    def before_step(self, fit, parameters, optimizer):
        for name, parameter in parameters.items():
            parameter.grad.add_(self.gone[name], alpha=self.settings["pull"])

    def on_fit_end(self, fit):
        way = {name: p.detach() - self.start[name] for name, p in fit.parameters.items()}
        fit.kept = {name: self.gone[name] + way[name] for name in way}
        return {"way": torch.cat([part.reshape(-1) for part in way.values()]).norm()}


class DriftAvg(AlgorithmStrategy):
    algorithm = "drift"
    clients_keep = True

    def settings(self, server_round):
        return {"pull": 0.2}

    def expected(self, arrays):
        return {"way": np.zeros((), np.float64)}

    def combine(self, before, mean, extras, share):
        return mean, {"way": extras["way"]}


def federate(tmp_path, half=Drift, strategy=DriftAvg, **options):
    return run(strategy(), app(keep_local=tmp_path, algorithms=(half,)), **options)


def test_it_is_its_formula_over_rounds(tmp_path):
    trainer = federate(tmp_path, rounds=3)
    w, gone = np.zeros(3), {i: np.zeros(3) for i in range(4)}
    for _ in range(3):
        new, way = {}, {}
        for i in range(4):
            (a, t), new[i] = examples(i), w.copy()
            for at in [*range(0, len(a), BATCH)] * EPOCHS:
                gradient = (a[at : at + BATCH] * (new[i] - t[at : at + BATCH])).mean(0)
                new[i] -= RATE * (gradient + 0.2 * gone[i])
            gone[i], way[i] = gone[i] + new[i] - w, np.linalg.norm(new[i] - w)
        w = mean(new)
    np.testing.assert_allclose(weights(trainer), w, rtol=1e-9)
    np.testing.assert_allclose(trainer.strategy.kept["way"], mean(way), rtol=1e-9)


class KeepsInSilence(Drift):
    keeps = False


def test_a_state_that_would_be_lost_is_refused(tmp_path):
    with pytest.raises(LightningFLError, match=r"leaves `head`, `tail` in `fit\.kept`, and it would"):
        federate(tmp_path, KeepsInSilence, rounds=1, clients=3)


class WeightsAlone(DriftAvg):
    def combine(self, before, mean, extras, share):
        return mean


class Fewer(DriftAvg):
    def combine(self, before, mean, extras, share):
        return {"head": mean["head"]}, {}


class More(DriftAvg):
    def combine(self, before, mean, extras, share):
        return {**mean, **extras}, {}


class Longer(DriftAvg):
    def combine(self, before, mean, extras, share):
        return {**mean, "tail": np.zeros(2)}, {}


class NoSetting(DriftAvg):
    def settings(self, server_round):
        return {"pull": None}


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (WeightsAlone, r"WeightsAlone\.combine must return the new weights and what is kept, .* Got dict"),
        (Fewer, "`seen` is missing; `tail` is missing|`tail` is missing; `seen` is missing"),
        (More, "`way` is none of the model's"),
        (Longer, r"`tail` has the shape \(2,\) instead of \(1,\)"),
        (NoSetting, r"NoSetting\.settings: 'pull' is None; expected a name, and a number"),
    ],
)
def test_a_server_s_half_that_gives_something_else_is_told_what(strategy, words, tmp_path):
    with pytest.raises(LightningFLError, match=words):
        federate(tmp_path, strategy=strategy, rounds=1, clients=3)


def test_a_server_that_does_not_tell_which_state_counted_is_named(tmp_path, caplog):
    class Untold(DriftAvg):
        clients_keep = False

    federate(tmp_path, strategy=Untold, rounds=2, clients=3)
    said = [r for r in caplog.records if "the server does not tell in which round" in r.getMessage()]
    assert len(said) == 1
    caplog.clear()
    federate(tmp_path, rounds=1, clients=3)
    assert "does not tell in which round" not in caplog.text
