"""What does not travel stays: whole federations, compared with clients whose modules lived on in memory."""

import logging

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from _local_parts import CLIENTS, DEVICE, ROUNDS, Adapted, Net, Tied, client_of, federate, files, loader, rows
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader

from lightning_fl_ext import FlowerBridge, RoundCallback, RoundCheckpoint, WeightExchange, client_app
from lightning_fl_ext.server import CallbackError


def lived_on(start, local):
    """The same federation by hand: modules that live on, and a mean weighted by examples, in float64.

    Args:
        start: The server's module, whose weights all start from.
        local: Each client's own module; what does not travel stays in it.

    Returns:
        The global weights after the last round, and the pooled loss of each round.
    """
    travels = [name for name in start.state_dict() if not name.startswith(("bn.", "head."))]
    weights, losses = {name: start.state_dict()[name].clone() for name in travels}, []
    for _ in range(ROUNDS):
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
        counts = [len(rows(client)) for client in range(CLIENTS)]
        for client, module in enumerate(local):
            module.load_state_dict(weights, strict=False)
            module.train()
            optimizer = module.configure_optimizers()
            for batch in DataLoader(rows(client), batch_size=4):
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()
            for name in travels:
                sums[name] += module.state_dict()[name].double() * counts[client]
        weights = {name: (total / sum(counts)).float() for name, total in sums.items()}
        squares = 0.0
        for client, module in enumerate(local):
            module.load_state_dict(weights, strict=False)
            module.eval()
            x, y = rows(client).tensors
            squares += (module(x) - y).square().sum().item()
        losses.append(squares / sum(counts))
    return weights, losses


LOCAL = WeightExchange(exclude=("bn.*", "head.*"))


def test_local_batch_norm_and_head_are_those_of_clients_that_lived_on():
    built = {}

    class Shows(Net):
        def setup(self, stage):
            built.setdefault(client_of(self), {k: v.clone() for k, v in self.state_dict().items()})

    trainer = federate(client_app(Shows, loader, DEVICE, exchange=LOCAL), exchange=LOCAL)
    start, local = Net(), [Net() for _ in range(CLIENTS)]
    first = federate(client_app(Net, loader, DEVICE, exchange=LOCAL), rounds=0, exchange=LOCAL)
    start.load_state_dict(first.model.state_dict())
    for module, (_, state) in zip(local, sorted(built.items()), strict=True):
        module.load_state_dict(state)
    weights, losses = lived_on(start, local)
    for name, expected in weights.items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=0, atol=1e-6)
    measured = [record.metrics["val_loss"] for record in trainer.rounds]
    np.testing.assert_allclose(measured, losses, rtol=1e-5)
    assert measured == sorted(measured, reverse=True)


class Kills(RoundCallback):
    def on_replies(self, trainer):
        if trainer.current_round == 2:
            raise OSError("power")


def test_they_survive_the_server_and_the_clients_process_state(tmp_path):
    """A new grid after the kill: contexts are gone, as when a SuperNode starts anew."""
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    whole = federate(client, exchange=LOCAL).result
    options = {"exchange": LOCAL, "default_root_dir": tmp_path, "ckpt_path": "last"}
    with pytest.raises(CallbackError, match="power"):
        federate(client, callbacks=[RoundCheckpoint(), Kills()], **options)
    resumed = federate(client, callbacks=[RoundCheckpoint()], **options).result
    assert resumed.digest == whole.digest
    assert [r.metrics["val_loss"] for r in resumed.rounds] == [r.metrics["val_loss"] for r in whole.rounds]


def test_another_run_never_uses_them():
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    assert federate(client, exchange=LOCAL).result.digest == federate(client, exchange=LOCAL).result.digest


def test_they_go_where_the_user_says(tmp_path):
    federate(client_app(Net, loader, DEVICE, exchange=LOCAL, keep_local=tmp_path), rounds=1, exchange=LOCAL)
    assert len(list(tmp_path.glob("*/*/round-00001"))) == CLIENTS
    assert not files()


def test_where_all_weights_travel_nothing_is_written():
    federate(client_app(Net, loader, DEVICE), rounds=2)
    assert not files()


def test_without_keeping_every_message_begins_with_them_as_they_are_built(caplog):
    heads = {client: [] for client in range(CLIENTS)}

    class Shows(Net):
        def on_train_start(self):
            heads[client_of(self)].append(self.head.weight.detach().clone())

    client = client_app(Shows, loader, DEVICE, exchange=LOCAL, keep_local=False)
    federate(client, exchange=LOCAL, rounds=2, fraction=0.0)
    for first, second in heads.values():
        assert torch.equal(first, second)
    assert not files()
    assert not [record for record in caplog.records if record.name.startswith("lightning_fl_ext")]


def test_where_they_cannot_be_kept_one_warning_names_them(tmp_path, caplog):
    (tmp_path / "file").touch()
    client = client_app(Net, loader, DEVICE, exchange=LOCAL, keep_local=tmp_path / "file")
    federate(client, exchange=LOCAL, rounds=3)
    said = [r.getMessage() for r in caplog.records if "cannot be kept" in r.getMessage()]
    assert len(said) == 1
    assert "7 entries" in said[0]
    assert "`bn.weight`" in said[0]
    assert "`head.bias`" in said[0]
    assert "keep_local" in said[0]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"keep_local": 3}, TypeError),
        ({"keep_local": False, "keep_optimizer": True}, ValueError),
        ({"keep_local": "a", "keep_optimizer": "b"}, ValueError),
    ],
)
def test_folders_that_contradict_each_other_are_refused(options, error):
    with pytest.raises(error, match="keep_local"):
        client_app(Net, loader, **options)


# What is said


def test_a_hand_written_client_hears_once_what_is_trained_and_lost(caplog):
    class Untested(Net):
        validation_step = L.LightningModule.validation_step

    app = ClientApp()

    @app.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context, exchange=LOCAL)
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        L.Trainer(max_epochs=1, callbacks=[bridge], **DEVICE, **quiet).fit(Untested(), loader(context))
        return bridge.reply()

    @app.query()
    def query(message, context):
        return client_app(Net, loader)(message, context)

    with caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        federate(app, exchange=LOCAL, fraction=0)
    said = [r.getMessage() for r in caplog.records if "neither travel" in r.getMessage()]
    assert len(said) == 1
    assert "4 trainable parameter(s)" in said[0]
    assert "head.weight" in said[0]


def test_the_server_says_once_that_it_judges_what_it_never_receives(caplog):
    client = client_app(Net, loader, DEVICE, exchange=LOCAL)
    federate(client, exchange=LOCAL, evaluate=lambda module: {"norm": module.head.weight.norm()})
    said = [r.getMessage() for r in caplog.records if "`evaluate` judges" in r.getMessage()]
    assert len(said) == 1
    assert "6 entries" in said[0]
    assert "bn.running_mean" in said[0]
    assert "head.weight" in said[0]


def test_it_says_nothing_of_what_is_frozen_or_tied(caplog):
    frozen = WeightExchange(include="head.*")
    tied = WeightExchange(exclude="out.weight")
    for model, exchange in ((Adapted, frozen), (Tied, tied), (Net, WeightExchange())):
        client = client_app(model, loader, DEVICE, exchange=exchange)
        federate(client, model, rounds=1, exchange=exchange, evaluate=lambda module: {"one": 1.0})
    assert "`evaluate` judges" not in caplog.text
