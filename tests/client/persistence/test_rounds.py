"""`client_app(keep_optimizer=...)`: a client that is made anew for every message, and one that lived on."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from _scripts import run_script
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import optim

from lightning_fl_ext import (
    RoundCallback,
    RoundCheckpoint,
    client_app,
    digest,
)
from lightning_fl_ext.client.persistence.state_folder import StateFolder
from lightning_fl_ext.server import CallbackError

DEVICE = {"accelerator": "cpu", "devices": 1}
ROUNDS, EPOCHS = 4, 2


# The same bits as in memory


def adam(module):
    return optim.Adam(module.parameters(), 0.05)


def every_step(module):
    optimizer = optim.SGD(module.parameters(), 0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=3 * EPOCHS * ROUNDS + 1)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def every_third_epoch(module):
    optimizer = optim.AdamW(module.parameters(), 0.05, amsgrad=True)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return [optimizer], [{"scheduler": scheduler, "interval": "epoch", "frequency": 3}]


def milestones(module):
    optimizer = optim.RMSprop(module.parameters(), 0.01, momentum=0.5)
    return [optimizer], [optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])]


def in_sequence(module):
    optimizer = optim.NAdam(module.parameters(), 0.05)
    warmup = optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    cosine = optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    return [optimizer], [optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [3])]


def plateau(module):
    optimizer = optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, threshold=10.0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


def groups(module):
    return optim.Adagrad(
        [{"params": module.norm.parameters(), "lr": 0.3}, {"params": module.layer.parameters()}], 0.1
    )


def lbfgs(module):
    return optim.LBFGS(module.parameters(), 0.1, max_iter=3, history_size=4)


OPTIMIZERS = [adam, every_step, every_third_epoch, milestones, in_sequence, plateau, groups, lbfgs]
TRAINERS = {
    "plain": dict,
    "accumulating": lambda: {"accumulate_grad_batches": 2},
    "clipping": lambda: {"gradient_clip_val": 0.1},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "scaler": lambda: {
        "plugins": [
            MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=5))
        ]
    },
}


class Counts:
    """A loss that follows the counters of steps and epochs, as annealed losses do."""

    def loss(self, batch):
        return super().loss(batch) * (1 + self.global_step / 10 + self.current_epoch / 100)


class TwoOptimizers:
    """Optimized by hand, by two optimizers with a schedule for one of them."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch) * (1 + self.global_step / 10))
        for optimizer in self.optimizers():
            optimizer.step()
        if self.trainer.is_last_batch:
            self.lr_schedulers().step()

    def configure_optimizers(self):
        one = optim.Adam(self.norm.parameters(), 0.05)
        other = optim.SGD(self.layer.parameters(), 0.1, momentum=0.9)
        return [one, other], [optim.lr_scheduler.StepLR(one, 3, 0.5)]


class LivedOn(Callback):
    """One long fit, which takes the global weights at the start of every round."""

    def __init__(self, kit, globals_):
        self.kit, self.globals = kit, globals_
        self.handed_in = []

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch % EPOCHS == 0:
            arrays = self.globals[trainer.current_epoch // EPOCHS]
            module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def on_train_epoch_end(self, trainer, module):
        if (trainer.current_epoch + 1) % EPOCHS == 0:
            arrays = {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in module.state_dict().items()
            }
            self.handed_in.append({name: tensor.numpy().copy() for name, tensor in arrays.items()})


def check(kit, ask, globals_, make, options):
    """A new client for every message hands in what one long fit had at the end of each round."""
    reference = LivedOn(kit, globals_)
    module = make()
    kit.fit(reference, module=module, max_epochs=EPOCHS * ROUNDS, **options())
    for number, (arrays, expected) in enumerate(zip(globals_, reference.handed_in, strict=True), 1):
        reply = ask(make, arrays, number, trainer={"max_epochs": EPOCHS, **options()})
        kit.assert_same(kit.weights(reply), expected)
        assert (reply.content["client"]["epochs"], reply.content["client"]["examples-seen"]) == (
            EPOCHS,
            10 * EPOCHS,
        )
    return module


@pytest.mark.parametrize("configure", OPTIMIZERS, ids=lambda f: f.__name__)
def test_every_optimizer_and_scheduler_goes_on(kit, ask, globals_, configure):
    make = type("Lit", (Counts, kit.Lit), {"configure_optimizers": configure})
    check(kit, ask, globals_, make, dict)


@pytest.mark.parametrize("options", TRAINERS.values(), ids=TRAINERS)
def test_under_every_precision_and_step(kit, ask, globals_, options, tmp_path):
    make = type("Lit", (Counts, kit.Lit), {"configure_optimizers": every_step})
    module = check(kit, ask, globals_, make, options)
    plugin = module.trainer.precision_plugin
    assert StateFolder(tmp_path / "kept", "0", "r").find().state["precision"] == plugin.state_dict()
    if options is TRAINERS["scaler"]:
        assert plugin.scaler.get_scale() != 4, "or nothing shows that the scale goes on"


def test_several_optimizers_stepped_by_hand_go_on(kit, ask, globals_):
    make = type("Lit", (TwoOptimizers, kit.Lit), {})
    check(kit, ask, globals_, make, dict)


def test_without_keeping_the_bits_differ(kit, ask, globals_):
    """Or the cases above show nothing."""
    make = type("Lit", (kit.Lit,), {"configure_optimizers": adam})
    kept = [digest(kit.weights(ask(make, arrays, n))) for n, arrays in enumerate(globals_, 1)]
    fresh = [digest(kit.weights(ask(make, a, n, keep_optimizer=False))) for n, a in enumerate(globals_, 1)]
    assert kept[0] == fresh[0]
    assert all(k != f for k, f in zip(kept[1:], fresh[1:], strict=True))


@pytest.fixture
def shuffled(kit):
    return lambda context: kit.loader(n=14, shuffle=True)


def test_where_nothing_is_to_keep_the_bits_are_those_without(kit, ask, globals_, shuffled):
    """Plain SGD has no state: keeping must not draw from the generator, nor shuffle otherwise."""
    for number, arrays in enumerate(globals_, 1):
        options = {"data": shuffled, "trainer": {"max_epochs": EPOCHS}}
        kept = ask(kit.Lit, arrays, number, **options)
        fresh = ask(kit.Lit, arrays, number, keep_optimizer=False, **options)
        kit.assert_same(kit.weights(kept), kit.weights(fresh))


class InFloat(optim.SGD):
    """Keeps its momentum in float32, whatever the parameters are."""

    def step(self, closure=None):
        loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                grad = parameter.grad.float()
                state["momentum"] = grad if not state else 0.9 * state["momentum"] + grad
                parameter.data.sub_((group["lr"] * state["momentum"]).to(parameter.dtype))
        return loss


def in_float(module):
    return InFloat(module.parameters(), 0.05)


def test_momentum_finer_than_the_parameters_is_not_cast(kit, ask, globals_):
    """Torch casts optimizer state to the parameters' dtype as it loads it."""
    make = type(
        "Lit", (kit.Lit,), {"configure_optimizers": lambda module: InFloat(module.parameters(), 0.05)}
    )
    check(kit, ask, globals_, make, lambda: {"precision": "bf16-true"})


# A whole federation


@pytest.fixture(scope="module")
def living():
    spec = importlib.util.spec_from_file_location("_living", Path(__file__).with_name("_living.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["_living"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def in_memory(living):
    trainer = living.federate(living.lived_on())
    rounds = [{int(client) for client in record.sampled} for record in trainer.rounds]
    assert rounds == [{0, 1, 3}, {0, 1, 2}, {1, 3, 4}, {0, 3, 4}], "clients come late, stay away, come back"
    return trainer.result.digest


def test_a_process_for_every_message_gives_the_digest_of_clients_that_lived_on(tmp_path):
    """One of the processes is killed as it keeps its state, and asked again."""
    found = run_script(Path(__file__).with_name("_living.py"), tmp_path)
    assert "3" in found["sampled"][2]
    assert found["fresh"] == found["memory"]
    assert found["left_behind"] == []


@pytest.mark.parametrize("arrival", [None, lambda messages: messages[::-1]], ids=["as_sent", "reversed"])
def test_the_digest_is_that_of_clients_that_lived_on_in_any_order(living, in_memory, tmp_path, arrival):
    assert living.federate(living.kept(tmp_path), arrival=arrival).result.digest == in_memory


class Kills(RoundCallback):
    """Stops the server when all clients have answered, before anything is written down."""

    def __init__(self, server_round):
        self.server_round = server_round

    def on_replies(self, trainer):
        if trainer.current_round == self.server_round:
            raise OSError("power")


@pytest.mark.parametrize("killed_in", [(1,), (3,), (2, 4), (4, 4)], ids=str)
def test_a_run_that_was_killed_goes_on_to_the_same_digest(living, in_memory, tmp_path, killed_in):
    def go(*callbacks):
        return living.federate(
            living.kept(tmp_path / "kept"),
            tmp_path,
            callbacks=[RoundCheckpoint(), *callbacks],
            ckpt_path="last",
        )

    for server_round in killed_in:
        with pytest.raises(CallbackError, match="power"):
            go(Kills(server_round))
    assert go().result.digest == in_memory


def test_another_run_starts_afresh(living, in_memory, tmp_path):
    """Client 4 takes part in rounds 1 and 2 of one run, and in the other for the first time in round 3."""
    before = living.federate(living.kept(tmp_path), rounds=2, seed=0)
    assert all("4" in record.sampled for record in before.rounds)
    assert living.federate(living.kept(tmp_path)).result.digest == in_memory


def test_flowers_own_strategies_give_each_run_an_id_too(kit, globals_, tmp_path):
    """Their config names no run: it is Flower's own."""
    digests = []
    for run_id in (1, 2):
        for number in (1, 2):
            context = kit.context()
            context.run_id = run_id
            message = kit.message(globals_[number], server_round=2 * run_id + number)
            app = client_app(kit.AdamLit, lambda _: kit.loader(), DEVICE, keep_optimizer=tmp_path)
            digests.append(digest(kit.weights(app(message, context))))
    assert digests[:2] == digests[2:]
