"""Buffers are averaged under every server optimizer of Flower's; parameters are optimised."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedMedian,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from lightning_fl_ext import RoundCallback
from lightning_fl_ext.server.strategies.buffers import averaged_buffers

OPTIMIZERS = {
    "FedAdam": lambda: FedAdam(eta=0.9),
    "FedAdagrad": lambda: FedAdagrad(eta=0.9),
    "FedYogi": lambda: FedYogi(eta=0.9),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=1.0, server_momentum=0.9),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1),
    "a subclass": lambda: type("Mine", (FedAdam,), {})(eta=0.9),
}


class Updates(RoundCallback):
    """Keeps each round's updates, and the model after it."""

    def __init__(self):
        self.rounds, self.models = [], []

    def on_round_start(self, trainer):
        self.rounds.append([])

    def on_reply(self, trainer, reply):
        if reply is not None:
            self.rounds[-1].append(reply)

    def on_round_end(self, trainer):
        self.models.append(dict(trainer.arrays))


def falling_variance(arrays, partition, server_round):
    """What BatchNorm does to clients whose activations shrink: it falls to a fifth in each round."""
    fitted = {name: array.copy() for name, array in arrays.items()}
    fitted["norm.running_var"] = arrays["norm.running_var"] * np.float32(0.2 + 0.01 * partition)
    fitted["norm.num_batches_tracked"] = arrays["norm.num_batches_tracked"] + 3 + partition
    for name in fitted:
        if name.endswith(("weight", "bias")):
            fitted[name] = fitted[name] * np.asarray(0.5, fitted[name].dtype)
    return fitted


def run(toy, strategy):
    seen = Updates()
    trainer = toy.make_trainer(strategy, callbacks=[seen], max_rounds=3)
    trainer.fit(toy.Net(buffers=True), toy.make_grid(app=toy.make_app(fit=falling_variance)))
    return seen, trainer


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_statistics_are_the_weighted_mean_and_counters_whole(toy, make):
    seen, trainer = run(toy, make())
    assert not any(record.void for record in trainer.rounds)
    for updates, model in zip(seen.rounds, seen.models, strict=True):
        counts = np.array([update.num_examples for update in updates], dtype=np.float64)
        for name in ("norm.running_var", "norm.running_mean", "norm.num_batches_tracked"):
            stack = np.stack([update.arrays[name] for update in updates]).astype(np.float64)
            mean = np.tensordot(counts / counts.sum(), stack, axes=1)
            if name.endswith("tracked"):
                assert model[name] == np.rint(mean)
            else:
                np.testing.assert_allclose(model[name], mean, rtol=1e-6, atol=1e-12)
        assert (model["norm.running_var"] > 0).all()
        assert model["norm.num_batches_tracked"].dtype == np.int64


def test_parameters_are_optimised_as_before(toy):
    """FedAvgM with momentum goes beyond all clients, who only halve the weights."""
    seen, _ = run(toy, FedAvgM(server_learning_rate=1.0, server_momentum=0.9))
    updates, model = seen.rounds[1], seen.models[1]
    weights = np.stack([update.arrays["weight"] for update in updates])
    assert (np.abs(model["weight"]) < np.abs(weights).min(0) - 0.01).any()


def test_only_optimizers_are_touched(toy):
    model = toy.Net(buffers=True)
    arrays = {"norm.running_var": np.ones(2, np.float32)}
    assert averaged_buffers(FedMedian(), model, arrays, []) == {}
    assert averaged_buffers(FedAdam(), torch.nn.Linear(2, 2), {"weight": np.ones((2, 2))}, []) == {}


class Frozen(torch.nn.Module):
    """A frozen body that is long beside all changes, a few weights that move, and maybe a counter."""

    def __init__(self, counts):
        super().__init__()
        self.register_buffer("body", torch.full((1000,), 3.0))
        self.head = torch.nn.Linear(40, 1)
        if counts:
            self.register_buffer("counter", torch.tensor(0))


def attacked(arrays, partition, server_round):
    """Honest clients move a little; another a hundred times as far, with a count of batches like theirs."""
    rng = np.random.default_rng((partition, server_round))
    step = 1e-3 if partition == 3 else 1e-5
    fitted = dict(arrays)
    for name in ("head.weight", "head.bias"):
        fitted[name] = (arrays[name] + step * rng.normal(size=arrays[name].shape)).astype(np.float32)
    if "counter" in arrays:
        fitted["counter"] = arrays["counter"] + np.array([10, 20, 32, 44, 45, 60, 80, 110, 140][partition])
    return fitted


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("name", ["Krum", "MultiKrum", "Bulyan"])
def test_a_choice_by_distance_is_of_the_weights_alone_and_has_all_their_digits(toy, name, counts):
    """Neither a frozen body that rounds the distances off nor a count of batches outweighs them."""
    options = {"num_malicious_nodes": 1, "fraction_evaluate": 0.0}
    strategy = {
        "Krum": lambda: Krum(**options),
        "MultiKrum": lambda: MultiKrum(num_nodes_to_select=7, **options),
        "Bulyan": lambda: Bulyan(**options),
    }[name]()
    model, seen = Frozen(counts), Updates()
    before = model.head.weight.detach().clone()
    trainer = toy.make_trainer(strategy, callbacks=[seen], max_rounds=1)
    result = trainer.fit(model, toy.make_grid(9, toy.make_app(fit=attacked))).model
    assert 0 < (result.head.weight - before).abs().max() < 1e-4
    if counts:
        assert result.counter == np.median([update.arrays["counter"] for update in seen.rounds[0]])
        assert result.counter.dtype == torch.int64
