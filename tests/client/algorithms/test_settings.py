"""Settings of a round: from the trainer or a callback to the clients' optimizers and modules."""

import numpy as np
import pytest
import torch
from _quadratic import CPU, Quadratic, app, data, run, weights
from flwr.serverapp.strategy import FedAdam, FedAvg

from lightning_fl_ext import (
    AlgorithmStrategy,
    ClientAlgorithm,
    Ditto,
    ExactFedAdam,
    ExactFedAvg,
    FedDyn,
    FederatedTrainer,
    FedNova,
    FedProx,
    FedRep,
    LightningFLError,
    LocalGrid,
    RoundCallback,
    RoundCheckpoint,
    Scaffold,
    SecureFedAvg,
    WeightExchange,
    client_app,
)
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm
from lightning_fl_ext.client.algorithms.rate import KEY
from lightning_fl_ext.server import CheckpointError
from lightning_fl_ext.wire.algorithm_names import FOR_ALL, OF_STRATEGIES

FEW = {"rounds": 2, "clients": 2}


def at_rate(rate):
    class AtRate(Quadratic):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), rate)

    return AtRate


def test_a_learning_rate_of_the_server_is_that_of_the_optimizer():
    told = run(ExactFedAvg(), app(), train_config={"learning-rate": 0.03}, **FEW)
    assert told.result.digest == run(ExactFedAvg(), app(at_rate(0.03)), **FEW).result.digest
    assert told.result.digest != run(ExactFedAvg(), app(), **FEW).result.digest


@pytest.mark.parametrize("by", ["function", "callback"])
def test_it_may_change_by_round(by):
    seen = []

    class Seen(Quadratic):
        def on_train_end(self):
            seen.append(self.optimizers().param_groups[0]["lr"])

    class Decay(RoundCallback):
        def on_configure_train(self, trainer, config):
            config["learning-rate"] = 0.1 / trainer.current_round

    def decay(server_round):
        return {"learning-rate": 0.1 / server_round}

    options = {"train_config": decay} if by == "function" else {"callbacks": [Decay()]}
    run(ExactFedAvg(), app(Seen), rounds=3, clients=2, **options)
    assert seen == [0.1, 0.1, 0.05, 0.05, 0.1 / 3, 0.1 / 3]


def test_settings_of_any_name_reach_the_module():
    def model(round):
        return at_rate(round.config["my-rate"])()

    told = run(ExactFedAvg(), app(model), train_config={"my-rate": 0.03}, **FEW)
    assert told.result.digest == run(ExactFedAvg(), app(at_rate(0.03)), **FEW).result.digest


def test_a_rate_that_would_be_overwritten_or_hides_others_is_refused():
    class Scheduled(Quadratic):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    class Grouped(Quadratic):
        def configure_optimizers(self):
            return torch.optim.SGD([{"params": [self.head], "lr": 0.1}, {"params": [self.tail], "lr": 1.0}])

    for module, words in (
        (Scheduled, r"a schedule \(StepLR\) sets its own"),
        (Grouped, "have different ones"),
    ):
        with pytest.raises(LightningFLError, match=words):
            run(ExactFedAvg(), app(module), rounds=1, train_config={"learning-rate": 0.1})
    for rate in (0.0, -1.0, "fast"):
        with pytest.raises(LightningFLError, match="config `learning-rate`: expected a"):
            run(ExactFedAvg(), app(), rounds=1, train_config={"learning-rate": rate})


def test_fedprox_goes_with_a_server_optimizer_and_with_local_batch_norm(tmp_path):
    def adam():
        return FedAdam(eta=0.1)

    pulled = run(adam(), app(), train_config={"proximal-mu": 0.3}, **FEW)
    assert np.abs(weights(pulled) - weights(run(adam(), app(), **FEW))).max() > 1e-4
    exact = run(FedAvg(), app(), train_config={"proximal-mu": 0.3}, **FEW)
    np.testing.assert_allclose(weights(exact), weights(run(FedProx(0.3), app(), **FEW)), rtol=1e-9)
    local = {"exchange": WeightExchange(exclude="seen")}
    run(FedProx(0.3), app(keep_local=tmp_path, **local), rounds=1, **local)


def test_a_server_optimizer_goes_with_buffers_that_stay_at_home(tmp_path):
    local = {"exchange": WeightExchange(exclude="seen")}
    kept = run(ExactFedAdam(0.1), app(keep_local=tmp_path, **local), **FEW, **local)
    assert "seen" not in kept.arrays
    np.testing.assert_array_equal(weights(kept), weights(run(ExactFedAdam(0.1), app(), **FEW)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algorithm": "scaffold"}, "named by the strategy whose server half it needs"),
        ({"run-seed": 3}, "`run-seed` is the trainer's own"),
        ({"counted-round": 3}, "`counted-round` is the trainer's own"),
        (
            {"proximal_mu": 0.1},
            "clients heed `proximal-mu`, and `proximal_mu` would be a setting that nobody",
        ),
        ({"Learning_Rate": 0.1}, "clients heed `learning-rate`"),
        ({"feddyn-alpha": 0.1}, r"`strategy=FedDyn\(alpha=\.\.\.\)`"),
        ({"fedrep-head-epochs": 1}, "no client reads it"),
        ({3: 0.1}, "only they travel"),
        ({"rate": None}, "only they travel"),
        ({"rate": {"a": 1}}, "only they travel"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_the_run(config, words):
    with pytest.raises(LightningFLError, match=words):
        FederatedTrainer(strategy=FedAdam(), train_config=config)
    with pytest.raises(LightningFLError, match=words):
        run(ExactFedAvg(), app(), rounds=1, train_config=lambda _: config)


def test_settings_that_are_none_are_refused():
    with pytest.raises(TypeError, match="`train_config` must be a dict"):
        FederatedTrainer(train_config=3)


def test_a_function_of_the_round_that_gives_nothing_is_refused():
    with pytest.raises(TypeError, match=r"must give a dict of settings, .* In round 1 it gave None"):
        run(ExactFedAvg(), app(), rounds=1, train_config=lambda _: None)


def test_numbers_of_numpy_travel_as_python_s():
    own = run(ExactFedAvg(), app(), train_config={"learning-rate": 0.25}, **FEW)
    for rate in (np.float32(0.25), np.float64(0.25)):
        for config in ({"learning-rate": rate}, lambda _, rate=rate: {"learning-rate": rate}):
            assert run(ExactFedAvg(), app(), train_config=config, **FEW).result.digest == own.result.digest


class Half(ClientAlgorithm):
    name = "half"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "`lr`, `momentum`"),
        ({"data": lambda round: data(round.context)}, ""),
        ({"trainer": lambda round: {**CPU, "max_epochs": 1}}, ""),
        ({"algorithms": (Half,)}, ""),
    ],
)
def test_settings_that_nobody_reads_are_named_once(options, named, caplog):
    client = client_app(**{"model": Quadratic, "data": data, "trainer": CPU} | options)
    run(ExactFedAvg(), client, train_config={"lr": 0.1, "momentum": 0.9, "learning-rate": 0.1}, **FEW)
    said = [r.getMessage() for r in caplog.records if "nobody reads it" in r.getMessage()]
    assert [text.split(", and nobody")[0] for text in said] == (
        [f"the server's config holds {named}"] * bool(named)
    )


@pytest.mark.parametrize(
    "strategy",
    [lambda: FedProx(0.1), Scaffold, FedNova, lambda: FedDyn(0.1), lambda: Ditto(0.1), FedAdam, SecureFedAvg],
)
def test_what_the_package_sends_itself_has_its_readers(strategy, tmp_path, caplog):
    run(strategy(), app(keep_local=tmp_path), rounds=1, clients=3, max_update_norm=100.0)
    assert "nobody reads it" not in caplog.text


def test_the_names_that_settings_are_checked_by_are_those_that_clients_heed():
    assert (KEY, ProximalTerm({"proximal-mu": 0.1}).mu) == (FOR_ALL[0], 0.1)
    strategies = {"feddyn-alpha": FedDyn(0.1), "ditto-lambda": Ditto(0.1), "fedrep-head-epochs": FedRep()}
    assert list(strategies) == list(OF_STRATEGIES)
    for key, strategy in strategies.items():
        assert list(strategy.settings(1)) == [key]
        assert OF_STRATEGIES[key].startswith(type(strategy).__name__)


@pytest.mark.parametrize("strategy", [Scaffold, lambda: FedDyn(0.1)])
def test_a_pull_beside_another_algorithm_is_refused(strategy, tmp_path):
    with pytest.raises(LightningFLError, match="One half is at work at a time"):
        run(strategy(), app(keep_local=tmp_path), rounds=1, train_config={"proximal-mu": 0.1})


def test_a_wrapper_that_changes_updates_on_their_way_is_refused(tmp_path):
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as Private

    trainer = FederatedTrainer(strategy=Private(Scaffold(), 0.1, 0.5, 4), enable_progress_bar=False)
    with pytest.raises(LightningFLError, match="changes updates on their way to Scaffold"):
        trainer.fit(Quadratic, LocalGrid(app(keep_local=tmp_path), 4))


def test_a_wrapper_around_clients_that_keep_something_is_refused():
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as Private

    class Keeping(AlgorithmStrategy):
        clients_keep = True

    trainer = FederatedTrainer(strategy=Private(Keeping(), 0.1, 0.5, 4), enable_progress_bar=False)
    with pytest.raises(LightningFLError, match="changes updates on their way to Keeping"):
        trainer.fit(Quadratic, LocalGrid(app(), 4))


def test_a_run_goes_on_with_the_settings_it_had(tmp_path):
    options = {"callbacks": [RoundCheckpoint()], "default_root_dir": tmp_path}
    run(ExactFedAvg(), app(), rounds=1, train_config={"learning-rate": 0.1}, **options)
    with pytest.raises(CheckpointError, match="train_config"):
        run(ExactFedAvg(), app(), fit={"ckpt_path": "last"}, train_config={"learning-rate": 0.2}, **options)


def test_fedprox_goes_with_secure_aggregation():
    told = {"train_config": {"proximal-mu": 0.3}, "rounds": 1, "clients": 3}
    masked = run(SecureFedAvg(), app(), **told)
    assert masked.result.digest == run(ExactFedAvg(), app(), **told).result.digest
    assert masked.result.digest != run(ExactFedAvg(), app(), rounds=1, clients=3).result.digest
