"""Every Flower strategy runs in the trainer, and computes what its formula says."""

import numpy as np
import pytest
import torch
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedTrimmedAvg

from lightning_fl_ext import RoundCallback, digest
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.server.screening.norms import update_norm
from lightning_fl_ext.wire import to_numpy


def start(model):
    return {name: to_numpy(tensor) for name, tensor in model.state_dict().items()}


def fits(toy, arrays, server_round=1, clients=range(5)):
    return [toy.local_fit(arrays, partition, server_round) for partition in clients]


def weights(toy, clients=range(5)):
    counts = np.array([toy.examples(partition) for partition in clients], dtype=np.float64)
    return counts / counts.sum()


def mean(toy, arrays, name, server_round=1):
    stack = np.stack([fit[name].astype(np.float64) for fit in fits(toy, arrays, server_round)])
    return np.tensordot(weights(toy), stack, axes=1)


@pytest.mark.usefixtures("untouched_random_state")
def test_every_strategy_runs_two_rounds_the_same_way_twice(toy, make_strategy, strategy_name):
    bit = {"norm_bit": 1.0} if strategy_name == "DPClientAdaptive" else None
    results = []
    for order in (slice(None), slice(None, None, -1)):
        grid = toy.make_grid(
            app=toy.make_app(extra=bit), arrival=lambda messages, order=order: messages[order]
        )
        results.append(toy.make_trainer(make_strategy(strategy_name)).fit(toy.Net(), grid))
    first, second = results
    assert first.digest == second.digest != digest(start(toy.Net()))
    assert [record.metrics for record in first.rounds] == [record.metrics for record in second.rounds]
    for record in first.rounds:
        assert record.accepted == ("00", "01", "02", "03", "04")
        assert record.rejected == ()
        assert not record.void
        assert {"train_loss", "val_loss"} <= record.metrics.keys()


def test_every_strategy_keeps_the_dtypes_of_a_model_with_buffers(toy, make_strategy, strategy_name):
    bit = {"norm_bit": 1.0} if strategy_name == "DPClientAdaptive" else None
    model = toy.Net(buffers=True)
    before = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    result = toy.make_trainer(make_strategy(strategy_name)).fit(
        model, toy.make_grid(app=toy.make_app(extra=bit))
    )
    assert {name: tensor.dtype for name, tensor in result.model.state_dict().items()} == before
    assert not any(record.void for record in result.rounds)


@pytest.mark.parametrize("name", ["ExactFedAvg", "FedAvg", "FedProx"])
def test_the_mean_of_every_dtype_is_the_contract_s(toy, make_strategy, name):
    model = toy.Net(buffers=True)
    arrays = start(model)
    state = toy.make_trainer(make_strategy(name), max_rounds=1).fit(model, toy.make_grid()).model.state_dict()
    for key, array in arrays.items():
        got, expected = to_numpy(state[key]), mean(toy, arrays, key)
        if array.dtype == np.bool_:
            np.testing.assert_array_equal(got, expected > 0.5)
        elif array.dtype.kind in "iu":
            np.testing.assert_array_equal(got, np.rint(expected))
        elif name == "ExactFedAvg" or array.dtype.itemsize == 2:
            np.testing.assert_array_equal(got, expected.astype(array.dtype))
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert state["norm.num_batches_tracked"].item() == round(
        float(mean(toy, arrays, "norm.num_batches_tracked"))
    )


def test_a_tie_between_masks_is_false_and_a_tie_between_counters_goes_to_even(toy):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.zeros(1))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("count", torch.tensor([0, 0]))

    def fit(arrays, partition, _):
        mask = np.array([partition == 0, True])
        return {**arrays, "mask": mask, "count": np.array([2 + partition, 1 + partition])}

    toy_examples = toy.examples
    for strategy in (FedAvg(), None):
        toy.examples = lambda partition: 10
        try:
            grid = toy.make_grid(2, toy.make_app(fit=fit))
            state = toy.make_trainer(strategy, max_rounds=1).fit(Tied(), grid).model.state_dict()
        finally:
            toy.examples = toy_examples
        assert state["mask"].tolist() == [False, True]
        assert state["count"].tolist() == [2, 2]


def test_fedadam_takes_the_adam_step_of_its_paper_twice(toy):
    arrays = {name: array.astype(np.float64) for name, array in start(toy.Net()).items()}
    eta, beta_1, beta_2, tau = 0.1, 0.9, 0.99, 1e-3
    m = v = 0.0
    weight = arrays["weight"]
    for server_round in (1, 2):
        now = {**arrays, "weight": weight.astype(np.float32)}
        delta = mean(toy, now, "weight", server_round) - weight
        m = beta_1 * m + (1 - beta_1) * delta
        v = beta_2 * v + (1 - beta_2) * delta**2
        rate = eta * np.sqrt(1 - beta_2 ** (server_round + 1)) / (1 - beta_1 ** (server_round + 1))
        weight = weight + rate * m / (np.sqrt(v) + tau)
    result = toy.make_trainer(FedAdam(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)).fit(
        toy.Net(), toy.make_grid()
    )
    np.testing.assert_allclose(to_numpy(result.model.weight), weight, rtol=1e-4)


def test_fedavgm_adds_momentum_to_the_mean_s_step(toy, make_strategy):
    start_weight = start(toy.Net())["weight"].astype(np.float64)
    weight, velocity = start_weight, 0.0
    for server_round in (1, 2):
        now = {**start(toy.Net()), "weight": weight.astype(np.float32)}
        velocity = 0.9 * velocity + (weight - mean(toy, now, "weight", server_round))
        weight = weight - 0.7 * velocity
    result = toy.make_trainer(make_strategy("FedAvgM")).fit(toy.Net(), toy.make_grid())
    np.testing.assert_allclose(to_numpy(result.model.weight), weight, rtol=1e-4)


def test_median_and_trimmed_mean_are_numpy_s(toy):
    arrays = start(toy.Net())
    stack = np.stack([fit["weight"] for fit in fits(toy, arrays)])
    ordered = np.sort(stack, axis=0)
    for strategy, expected in (
        (FedMedian(), np.median(stack, axis=0)),
        (FedTrimmedAvg(beta=0.2), ordered[1:-1].mean(axis=0)),
    ):
        result = toy.make_trainer(strategy, max_rounds=1).fit(toy.Net(), toy.make_grid())
        np.testing.assert_allclose(to_numpy(result.model.weight), expected, rtol=1e-6)


def test_krum_picks_the_client_nearest_to_its_neighbours(toy, make_strategy):
    arrays = start(toy.Net())
    flat = [np.concatenate([a.reshape(-1) for a in fit.values()]) for fit in fits(toy, arrays)]
    distances = np.array([[np.square(a - b).sum() for b in flat] for a in flat])
    scores = [np.sort(np.delete(row, i))[: 5 - 1 - 2].sum() for i, row in enumerate(distances)]
    result = toy.make_trainer(make_strategy("Krum"), max_rounds=1).fit(toy.Net(), toy.make_grid())
    nearest = fits(toy, arrays)[int(np.argmin(scores))]
    np.testing.assert_array_equal(to_numpy(result.model.weight), nearest["weight"])


def test_a_client_s_order_of_keys_does_not_matter_to_strategies_that_pair_by_position(toy, make_strategy):
    def reversed_fit(arrays, partition, server_round):
        made = toy.local_fit(arrays, partition, server_round)
        return dict(reversed(made.items())) if partition == 0 else made

    for name in ("FedAvgM", "QFedAvg", "DPServerFixed", "FedMedian"):
        plain = toy.make_trainer(make_strategy(name)).fit(toy.Net(), toy.make_grid())
        mixed = toy.make_trainer(make_strategy(name)).fit(
            toy.Net(), toy.make_grid(app=toy.make_app(fit=reversed_fit))
        )
        assert plain.digest == mixed.digest


@pytest.mark.parametrize(
    ("name", "mod"), [("DPClientFixed", fixedclipping_mod), ("DPClientAdaptive", adaptiveclipping_mod)]
)
def test_clients_with_flower_s_mod_clip_their_updates(toy, make_strategy, name, mod):
    norms = []

    class Norms(RoundCallback):
        def on_reply(self, trainer, reply):
            if reply is not None:
                norms.append(update_norm(reply.arrays, trainer.arrays))

    limit = make_strategy(name).clipping_norm
    for mods, clipped in (([mod], True), ([], False)):
        norms.clear()
        grid = toy.make_grid(app=toy.make_app(mods=mods, extra=None if mods else {"norm_bit": 1.0}))
        trainer = toy.make_trainer(make_strategy(name), callbacks=Norms(), max_rounds=1)
        assert trainer.fit(toy.Net(), grid).rejected == []
        assert len(norms) == 5
        assert (max(norms) <= limit * (1 + 1e-6)) == clipped


def test_each_fit_starts_with_the_strategy_as_it_was_given(toy):
    trainer = toy.make_trainer(FedAdam())
    first = trainer.fit(toy.Net(), toy.make_grid())
    assert trainer.fit(toy.Net(), toy.make_grid()).digest == first.digest


def test_a_strategy_that_fails_is_named_with_the_round(toy):
    class Broken(FedAvg):
        def aggregate_train(self, server_round, replies):
            raise RuntimeError("no luck")

    with pytest.raises(Exception, match=r"Broken.aggregate_train failed in round 1: RuntimeError: no luck"):
        toy.make_trainer(Broken()).fit(toy.Net(), toy.make_grid())


def test_weights_that_a_strategy_breaks_are_named(toy):
    class Exploding(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            broken = arrays["bias"].numpy() / np.float32(0) if server_round == 2 else arrays["bias"].numpy()
            arrays["bias"] = type(arrays["bias"])(broken)
            return arrays, metrics

    with (
        np.errstate(divide="ignore"),
        pytest.raises(
            Exception, match=r"Exploding made weights that are not finite in round 2, at \['bias'\]"
        ),
    ):
        toy.make_trainer(Exploding()).fit(toy.Net(), toy.make_grid())


def test_a_strategy_that_makes_no_model_leaves_a_void_round(toy, caplog):
    from flwr.serverapp.strategy import Bulyan

    trainer = toy.make_trainer(Bulyan(num_malicious_nodes=1))  # needs seven
    with pytest.raises(LightningFLError, match="5 of 5 updates count, but Bulyan made no model of them"):
        trainer.fit(toy.Net(), toy.make_grid())
    assert all(record.void for record in trainer.rounds)
    assert digest(trainer.arrays) == digest(start(toy.Net()))
    assert "round 1 is void, the model stays: 5 of 5 updates count, but Bulyan" in caplog.text


@pytest.mark.parametrize("method", ["configure_train", "configure_evaluate", "aggregate_evaluate"])
def test_whichever_method_of_a_strategy_fails_is_named(toy, method):
    def fail(self, server_round, *_):
        raise RuntimeError("no luck.")

    broken = type("Broken", (FedAvg,), {method: fail})()
    failed = rf"Broken.{method} failed in round 1: RuntimeError: no luck \(test_strategies\.py:\d+\)"
    with pytest.raises(LightningFLError, match=failed):
        toy.make_trainer(broken).fit(toy.Net(), toy.make_grid())
