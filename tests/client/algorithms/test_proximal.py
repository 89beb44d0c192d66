"""FedProx: the term in the gradients is the term in the loss, for what travels and nothing else."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_fl_ext import (
    FederatedTrainer,
    FlowerBridge,
    LightningFLError,
    LocalGrid,
    WeightExchange,
    client_app,
    digest,
)
from lightning_fl_ext.client.algorithms.hooks import AlgorithmHooks
from lightning_fl_ext.client.algorithms.proximal import ProximalTerm
from lightning_fl_ext.client.instruction_limits import InstructionError
from lightning_fl_ext.wire import from_record, to_record

MU = 0.7
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.02),
}
TWENTY_STEPS = {"max_epochs": 5, "limit_train_batches": 4}


def pull():
    return AlgorithmHooks(ProximalTerm({"proximal-mu": MU}))


class Net(L.LightningModule):
    """Two layers in double precision; with `mu`, the proximal term is in the loss."""

    def __init__(self, optimizer="sgd", mu=0.0, pulled=("body", "head")):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(4, 1)
        self.double()
        self.optimizer, self.mu, self.pulled = optimizer, mu, pulled
        self.start = {n: p.detach().clone() for n, p in self.named_parameters() if n.startswith(pulled)}

    def loss(self, batch):
        x, y = (part.double() for part in batch)
        loss = (self.head(torch.tanh(self.body(x))) - y).square().mean()
        if self.mu:
            own = dict(self.named_parameters())
            loss = loss + self.mu / 2 * sum((own[n] - w).square().sum() for n, w in self.start.items())
        return loss

    def training_step(self, batch, _):
        return self.loss(batch)

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


def weights(module):
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}


def assert_close(module, reference, rtol=1e-6):
    for name, array in weights(reference).items():
        np.testing.assert_allclose(weights(module)[name], array, rtol=rtol, atol=1e-9, err_msg=name)


def differ(left, right):
    return any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(left.values(), right.values(), strict=True))


@pytest.fixture
def fit(kit):
    def run(module, *callbacks, **options):
        return kit.fit(
            *callbacks, module=module, data=kit.loader(16, batch_size=4), **{**TWENTY_STEPS, **options}
        )

    return run


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.3}],
    ids=["plain", "accumulated", "clipped"],
)
def test_twenty_steps_are_those_of_the_term_in_the_loss(fit, optimizer, options):
    reference = fit(Net(optimizer, mu=MU), **options)
    assert_close(fit(Net(optimizer), pull(), **options), reference)
    assert differ(weights(reference), weights(fit(Net(optimizer), **options)))


def test_gradients_are_unscaled_before_the_term_is_added(fit):
    def run(module, *callbacks):
        return fit(module, *callbacks, plugins=[MixedPrecision("16-mixed", "cpu")], gradient_clip_val=0.3)

    assert_close(run(Net(), pull()), run(Net(mu=MU)), rtol=1e-3)


def test_each_of_several_optimizers_gets_the_term_of_its_own_parameters_in_manual_optimization(fit):
    class Two(Net):
        automatic_optimization = False

        def training_step(self, batch, _):
            for optimizer in self.optimizers():
                self.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            layers = self.body, self.head
            return [OPTIMIZERS[n](layer.parameters()) for n, layer in zip(OPTIMIZERS, layers, strict=True)]

    assert_close(fit(Two(), pull()), fit(Two(mu=MU)))


def test_manual_steps_that_pass_lightning_by_are_refused(fit):
    class Raw(Net):
        automatic_optimization = False

        def training_step(self, batch, _):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    with pytest.raises(LightningFLError, match=r"saw no step of an optimizer.*`Raw` optimizes manually"):
        fit(Raw(), pull())


@pytest.mark.parametrize("raw", ["first", "every other"])
def test_so_are_some_of_many_manual_steps(raw, fit):
    class Partly(Net):
        automatic_optimization = False

        def training_step(self, batch, index):
            for number, optimizer in enumerate(self.optimizers()):
                self.zero_grad()
                self.manual_backward(self.loss(batch))
                passes = number == 0 if raw == "first" else (index + number) % 2
                (optimizer.optimizer if passes else optimizer).step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.body.parameters(), 0.1), torch.optim.Adam(self.head.parameters())

    kinds = "SGD" if raw == "first" else "SGD, Adam"
    with pytest.raises(
        LightningFLError, match=rf"did not see all steps of {kinds}, so it had no part in those"
    ):
        fit(Partly(), pull())


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")  # said once in a process
def test_a_skipped_batch_moves_nothing_and_an_unreached_parameter_is_pulled(fit):
    class Skipping(Net):
        def training_step(self, batch, index):
            return None if index % 2 else super().training_step(batch, index)

    class HalfReached(Net):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            if index < 2:
                return loss
            reached = self.head.bias.square().sum()
            own = dict(self.named_parameters())
            term = sum((own[n] - w).square().sum() for n, w in self.start.items())
            return reached + self.mu / 2 * term if self.mu else reached

    assert_close(fit(Skipping(), pull()), fit(Skipping(mu=MU)))
    assert_close(fit(HalfReached(), pull()), fit(HalfReached(mu=MU)))


def test_frozen_parameters_stay(fit):
    module = Net()
    module.body.requires_grad_(False)
    before = weights(module)
    fit(module, pull())
    np.testing.assert_array_equal(weights(module)["body.weight"], before["body.weight"])


def test_sparse_gradients_are_refused(fit):
    class Sparse(Net):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(5, 1, sparse=True)

        def training_step(self, batch, _):
            return self.words(torch.tensor([1, 2])).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.words.parameters(), 0.1)

    with pytest.raises(LightningFLError, match="`SGD` has sparse gradients: build embeddings"):
        fit(Sparse(), pull())


def asking(kit, module, *, server_round=1, **config):
    message = kit.message(kit.arrays_of(module), server_round=server_round)
    for key, value in config.items():
        message.content["config"][key.replace("_", "-")] = value
    return message


def handwritten(kit, **options):
    app = ClientApp()

    @app.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context, **options)
        kit.fit(bridge, module=Net(), data=kit.loader(16, batch_size=4), **TWENTY_STEPS)
        return bridge.reply()

    return app


def made(kit, **options):
    trainer = {"accelerator": "cpu", "devices": 1, **TWENTY_STEPS}
    return client_app(
        Net, lambda _: kit.loader(16, batch_size=4), trainer, **{"keep_local": False, **options}
    )


@pytest.mark.parametrize("make", [handwritten, made])
def test_a_client_adds_the_term_that_its_server_asks_for(kit, fit, make):
    def ask(**config):
        return from_record(make(kit)(asking(kit, Net(), **config), kit.context()).content["arrays"])

    pulled, again = ask(proximal_mu=MU), ask(proximal_mu=MU, algorithm="fedprox")
    assert digest(pulled) == digest(again)
    for name, array in weights(fit(Net(mu=MU))).items():
        np.testing.assert_allclose(pulled[name], array, rtol=1e-6, atol=1e-9)
    assert digest(ask()) == digest(ask(proximal_mu=0.0)) == digest(ask(algorithm="fedavg")) != digest(pulled)


def test_only_parameters_that_travel_are_pulled(kit, fit):
    arrays = kit.arrays_of(Net())
    message = asking(kit, Net(), proximal_mu=MU)
    exchange = WeightExchange(exclude="head.*")
    message.content["arrays"] = to_record({n: a for n, a in arrays.items() if n.startswith("body")})
    bridge = FlowerBridge.from_message(message, kit.context(), exchange=exchange)
    bridge.keeps_local = True
    assert_close(fit(Net(), bridge), fit(Net(mu=MU, pulled=("body",))))


def test_the_pull_is_to_the_received_weights_not_to_the_module_s_own(kit, fit):
    other = Net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3)
    bridge = FlowerBridge.from_message(asking(kit, other, proximal_mu=MU), kit.context())
    reference = Net(mu=MU)
    reference.load_state_dict(other.state_dict())
    reference.start = {n: p.detach().clone() for n, p in other.named_parameters()}
    assert_close(fit(Net(), bridge), fit(reference))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "0.1", True, [0.1]])
def test_an_odd_mu_is_refused(kit, value):
    message = asking(kit, Net(), proximal_mu=value)
    with pytest.raises(InstructionError, match="config `proximal-mu`: expected a finite number of at least"):
        FlowerBridge.from_message(message, kit.context())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algorithm": "other"}, "knows fedavg, fedprox, "),
        ({"algorithm": "other"}, ", got `other`. Nothing was trained"),
        ({"algorithm": 1.5}, "config `algorithm`: expected a text"),
        ({"algorithm": "fedprox"}, "`proximal-mu` is missing"),
        ({"algorithm": "fedavg", "proximal_mu": 0.1}, "`proximal-mu` is 0.1: expected 0 or none"),
        ({"algorithm": "scaffold", "proximal_mu": 0.1}, "One half is at work at a time"),
    ],
)
def test_an_algorithm_that_the_client_does_not_know_is_refused(kit, config, words):
    with pytest.raises(InstructionError) as caught:
        FlowerBridge.from_message(asking(kit, Net(), **config), kit.context())
    assert words in str(caught.value)


def test_flower_s_fedprox_pulls_and_reproduces_in_a_federation(kit):
    def run(strategy):
        trainer = FederatedTrainer(2, strategy, enable_progress_bar=False)
        return trainer.fit(Net(), LocalGrid(made(kit), num_clients=3))

    def strategy(kind, **options):
        return kind(fraction_evaluate=0.0, **options)

    plain, pulled = run(strategy(FedAvg)), run(strategy(FedProx, proximal_mu=MU))
    assert run(strategy(FedProx, proximal_mu=0.0)).digest == plain.digest != pulled.digest
    assert run(strategy(FedProx, proximal_mu=MU)).digest == pulled.digest
    moved = [
        sum(np.square(w - weights(Net())[n]).sum() for n, w in weights(r.model).items())
        for r in (plain, pulled)
    ]
    assert moved[1] < moved[0]


def test_clients_that_do_not_know_the_strategy_s_algorithm_stop_the_run_by_name(kit):
    class Later(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            config["algorithm"] = "other"
            return super().configure_train(server_round, arrays, config, grid)

    trainer = FederatedTrainer(1, Later(fraction_evaluate=0.0), enable_progress_bar=False)
    with pytest.raises(LightningFLError, match=r"knows fedavg, fedprox, .*got `other`"):
        trainer.fit(Net(), LocalGrid(made(kit), num_clients=3))
