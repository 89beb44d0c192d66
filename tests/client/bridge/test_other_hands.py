"""`FlowerBridge` in the hands of `pytorch_lightning`, the command line and hand-written clients."""

import copy
import sys
from functools import partial

import lightning.pytorch as L
import pytest
import torch

from lightning_fl_ext import FlowerBridge, client_app
from lightning_fl_ext.wire import from_record


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_trainer_of_pytorch_lightning(kit):
    import pytorch_lightning as pl

    class Old(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch, batch_idx):
            loss = (self.layer(batch[0]) - batch[1]).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    source = kit.arrays_of(kit.fresh_module(1, Old))
    bridge = FlowerBridge.from_message(kit.message(source), kit.context(), keep="all")
    module = kit.fresh_module(2, Old)
    pl.Trainer(**kit.QUIET, max_epochs=2, callbacks=[bridge]).fit(module, kit.loader())
    assert [r.num_examples for r in bridge.results] == [10, 10]
    kit.assert_same(from_record(bridge.reply().content["arrays"]), kit.arrays_of(module))

    reference = kit.fresh_module(1, Old)
    pl.Trainer(**kit.QUIET, max_epochs=2).fit(reference, kit.loader())
    kit.assert_same(kit.arrays_of(module), kit.arrays_of(reference))

    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1)
    with pytest.raises(ValueError, match="`StochasticWeightAveraging` precedes `FlowerBridge`"):
        pl.Trainer(**kit.QUIET, max_epochs=2, callbacks=[averaging, bridge]).fit(module, kit.loader())


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # what Lightning itself calls
    pytest.importorskip("docstring_parser", reason="needs `jsonargparse[signatures]`")
    from lightning.pytorch.cli import LightningCLI

    return partial(LightningCLI, save_config_callback=None, seed_everything_default=False)


def test_from_the_command_line(kit, cli):
    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return kit.loader()

    made = cli(
        kit.Lit,
        Data,
        args=[
            "fit",
            *(f"--trainer.{option}={str(value).lower()}" for option, value in kit.QUIET.items()),
            "--trainer.max_epochs=3",
            "--trainer.callbacks+=lightning_fl_ext.FlowerBridge",
            "--trainer.callbacks.keep=2",
            "--trainer.callbacks.submit=mean",
        ],
    )
    bridge = next(c for c in made.trainer.callbacks if isinstance(c, FlowerBridge))
    assert [r.epoch for r in bridge.results] == [1, 2]
    assert bridge.update.epochs == 3


def test_the_command_line_takes_keep_as_a_word_too(kit, cli):
    args = ["--trainer.callbacks+=lightning_fl_ext.FlowerBridge", "--trainer.callbacks.keep=all"]
    made = cli(kit.Lit, run=False, args=args, trainer_defaults=kit.QUIET)
    assert any(isinstance(c, FlowerBridge) for c in made.trainer.callbacks)


def test_a_bridge_whose_copy_was_trained_has_its_results(kit):
    """Some libraries copy the callbacks they are given, and train the copies."""
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge.from_message(kit.message(source), kit.context(), keep="all")
    for epochs in (1, 2):  # the last one that ran
        copied = copy.deepcopy([bridge])
        module = kit.fit(copied[0], module=kit.fresh_module(2), max_epochs=epochs)
        assert [r.epoch for r in bridge.results] == list(range(epochs))
    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))
    assert bridge.reply().content["metrics"]["num-examples"] == 10
    again = copy.deepcopy(copied[0])
    kit.fit(again, module=kit.fresh_module(3), max_epochs=1)
    assert len(copied[0].results) == 2, "a copy of what has run itself is on its own"
    kit.fit(bridge, module=kit.fresh_module(4), max_epochs=3)
    assert [r.epoch for r in bridge.results] == [0, 1, 2], "its own run comes first"


def test_seeded_gives_a_hand_written_client_the_bytes_of_client_app(kit):
    class Noisy(kit.Lit):
        def loss(self, batch):
            return super().loss([torch.nn.functional.dropout(batch[0], 0.5), batch[1]])

    sent = kit.message(kit.arrays_of(kit.fresh_module(1)), run_seed=5, server_round=2)
    replies = []
    for _ in range(2):
        torch.rand(3)  # wherever the process's own random state stands
        bridge = FlowerBridge.from_message(sent, kit.context())
        module = Noisy()  # `client_app` builds it under a seed of its own
        before = torch.get_rng_state()
        with bridge.seeded():
            kit.fit(bridge, module=module, data=kit.loader(shuffle=True))
        assert torch.equal(torch.get_rng_state(), before)
        replies.append(kit.weights(bridge.reply()))
    app = client_app(Noisy, lambda _: kit.loader(shuffle=True), {"accelerator": "cpu"})
    whole = kit.weights(app(sent, kit.context()))
    kit.assert_same(replies[0], whole)
    kit.assert_same(replies[1], whole)
