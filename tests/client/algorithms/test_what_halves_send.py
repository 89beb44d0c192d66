"""What a client's half sends beside the weights, number by number."""

import numpy as np
import pytest
import torch
from _quadratic import RATE, Quadratic, app, run, steps

from lightning_fl_ext import ClientAlgorithm, FedNova, Scaffold
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks
from lightning_fl_ext.wire import from_record


def sent(strategy, client, rounds, clients, **options):
    """What came beside the weights, by client, in the last round."""
    extras = {}

    def look(instruction, reply):
        if "arrays" in reply.content:
            arrays = from_record(reply.content["arrays"])
            name = int(reply.content["client"]["client-id"])
            extras[name] = {k.removeprefix("algorithm/"): v for k, v in arrays.items() if "/" in k}
        return reply

    run(strategy, client, rounds=rounds, clients=clients, grid={"faults": look}, **options)
    return extras


class Halving(Quadratic):
    """Each step has half the rate of the one before."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), RATE, momentum=self.momentum)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("model", [Quadratic, Halving])
def test_fednova_s_normalizer_is_what_gradients_of_one_have_moved_in_first_rates(model, momentum):
    def moved(number):  # by the optimizer's own rule
        total, heavy = 0.0, 0.0
        for step in range(number):
            heavy = momentum * heavy + 1
            total += heavy * (0.5**step if model is Halving else 1.0)
        return total

    extras = sent(FedNova(), app(lambda: model(momentum)), rounds=1, clients=3)
    assert sorted(extras) == [0, 1, 2]
    for client, told in extras.items():
        assert told["normalizer"] == pytest.approx(moved(steps(client)), rel=1e-12)


def test_a_control_variate_of_what_a_client_does_not_train_in_a_round_stays(tmp_path):
    class Resting(Quadratic):
        def __init__(self, number):
            super().__init__()
            self.tail.requires_grad = number != 2

    def model(round):
        return Resting(round.server_round)

    def tails(rounds):
        client = app(model, keep_local=tmp_path / str(rounds))
        return {i: told["tail"] for i, told in sent(Scaffold(), client, rounds, clients=3).items()}

    trained, rested = tails(1), tails(2)
    assert all(np.abs(change).max() > 0 for change in trained.values())
    assert all(np.abs(change).max() == 0 for change in rested.values())


@pytest.mark.parametrize(
    ("returned", "kept", "words"),
    [
        (None, {}, r"`Odd.on_fit_end` must return tensors by name. Got None"),
        ({"w": np.zeros(1)}, {}, "must return tensors by name. Got .*'w': 'ndarray'"),
        ({1: torch.zeros(1)}, {}, "must return tensors by name"),
        ({}, {"w": 1.0}, "must leave in `fit.kept` tensors by name. Got .*'w': 'float'"),
    ],
)
def test_what_a_half_of_one_s_own_sends_and_keeps_must_be_tensors(returned, kept, words, kit):
    class Odd(ClientAlgorithm):
        name = "odd"

        def on_fit_end(self, fit):
            fit.kept.update(kept)
            return returned

    with pytest.raises(TypeError, match=words):
        kit.fit(AlgorithmHooks(Odd({})))
