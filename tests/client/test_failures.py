"""After a run that raised, the bridge holds what was complete, says so, and hands out nothing else."""

import logging

import pytest
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext import FlowerBridge, LightningFLError


class Breaks(Callback):
    """Raises in a hook, in one epoch."""

    def __init__(self, hook, error, epoch=1):
        self.error = error
        self.epoch = epoch
        setattr(self, hook, self.fail)

    def fail(self, trainer, *_, **__):
        if trainer.current_epoch == self.epoch:
            raise self.error


@pytest.mark.parametrize("spooled", [False, True])
def test_complete_epochs_stay_and_nothing_is_handed_in(kit, caplog, tmp_path, spooled):
    source = kit.arrays_of(kit.fresh_module(1))
    options = {"spool_dir": str(tmp_path)} if spooled else {}
    bridge = FlowerBridge.from_message(kit.message(source), kit.context(3, of=9), keep="all", **options)
    with pytest.raises(OSError, match="disk"), caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        kit.fit(bridge, Breaks("on_train_batch_end", OSError("disk"), epoch=2), max_epochs=4)

    assert [r.epoch for r in bridge.results] == [0, 1]
    why = (
        r"client `3` has no update: `Trainer\.fit` raised OSError: disk \(test_failures\.py:\d+\)\."
        r" Complete epochs in `results`: 2, the last of which is epoch 1\."
    )
    assert not caplog.text  # the exception goes on, and the server tells it
    for ask in (lambda: bridge.update, bridge.reply):
        with pytest.raises(LightningFLError, match=why):
            ask()


def test_a_bridge_alone_says_what_is_left(kit, caplog):
    with pytest.raises(OSError, match=r"disk$"), caplog.at_level(logging.WARNING, "lightning_fl_ext"):
        kit.fit(FlowerBridge(), Breaks("on_train_batch_end", OSError("disk"), epoch=1), max_epochs=3)
    assert "this client has no update: `Trainer.fit` raised OSError: disk (test_failures.py:" in caplog.text
    assert "Complete epochs in `results`: 1, the last of which is epoch 0." in caplog.text


def test_a_fit_that_raises_in_its_first_epoch_leaves_none(kit):
    bridge = FlowerBridge()
    with pytest.raises(OSError, match="disk"):
        kit.fit(bridge, Breaks("on_train_batch_end", OSError("disk"), epoch=0))
    assert bridge.results == []
    with pytest.raises(LightningFLError, match=r"this client has no update: .*Complete epochs .*: none"):
        _ = bridge.update


def test_an_interrupt_is_a_fit_that_raised(kit):
    bridge = FlowerBridge()
    with pytest.raises(SystemExit):
        kit.fit(bridge, Breaks("on_train_batch_end", KeyboardInterrupt(), epoch=1), max_epochs=3)
    assert [r.epoch for r in bridge.results] == [0]
    with pytest.raises(LightningFLError, match="raised KeyboardInterrupt"):
        _ = bridge.update


@pytest.mark.parametrize("hook", ["on_train_end", "on_fit_end", "teardown"])
def test_a_fit_that_raises_after_its_last_epoch_has_no_update_either(kit, hook):
    bridge = FlowerBridge()
    with pytest.raises(OSError, match="disk"):
        kit.fit(bridge, Breaks(hook, OSError("disk"), epoch=2), max_epochs=2)
    assert [r.epoch for r in bridge.results] == [0, 1]
    with pytest.raises(LightningFLError, match="no update"):
        _ = bridge.update


def test_a_second_fit_that_raises_does_not_hand_in_the_update_of_the_first(kit):
    bridge = FlowerBridge()
    kit.fit(bridge, max_epochs=3)
    with pytest.raises(OSError, match="disk"):
        kit.fit(bridge, Breaks("on_train_batch_end", OSError("disk"), epoch=1), max_epochs=3)
    assert [r.epoch for r in bridge.results] == [0]
    with pytest.raises(LightningFLError, match="no update"):
        _ = bridge.update


def test_a_second_fit_that_never_begins_withdraws_the_update_too(kit):
    bridge = FlowerBridge()
    kit.fit(bridge)
    with pytest.raises(TypeError):
        kit.trainer(bridge).fit(kit.Lit(), data_that_is_not := 3)  # noqa: F841
    with pytest.raises(LightningFLError, match="no update"):
        _ = bridge.update


def test_a_fit_that_succeeds_after_one_that_raised_is_a_fit(kit):
    bridge = FlowerBridge()
    with pytest.raises(OSError, match="disk"):
        kit.fit(bridge, Breaks("on_train_batch_end", OSError("disk"), epoch=0))
    module = kit.fit(bridge)
    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))


def test_a_validation_that_raises_costs_the_evaluation_and_not_the_update(kit):
    bridge, module = FlowerBridge(), kit.Validated()
    trainer = kit.trainer(bridge)
    trainer.fit(module, kit.loader(), kit.loader(n=6))
    trainer.validate(module, kit.loader(n=6), verbose=False)
    assert bridge.evaluation.num_examples == 6
    trainer.callbacks.append(Breaks("on_validation_batch_end", OSError("disk"), epoch=trainer.current_epoch))
    with pytest.raises(OSError, match="disk"):
        trainer.validate(module, kit.loader(n=6), verbose=False)
    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))
    with pytest.raises(LightningFLError, match=r"no evaluation: `Trainer\.validate` raised OSError: disk"):
        _ = bridge.evaluation


def test_a_result_that_cannot_be_written_leaves_no_half_of_it(kit, tmp_path, monkeypatch):
    """The disk fills up in the second epoch, in the middle of the file."""
    from lightning_fl_ext.client.results import spool

    write = spool.save_file

    def cut(tensors, path, metadata):
        write(tensors, path, metadata)
        if "000001" in str(path):
            path.write_bytes(path.read_bytes()[:-5])
            raise OSError("no space left")

    monkeypatch.setattr(spool, "save_file", cut)
    bridge = FlowerBridge(spool_dir=str(tmp_path))
    with pytest.raises(OSError, match="no space"):
        kit.fit(bridge, max_epochs=3)
    assert [r.epoch for r in bridge.results] == [0]
    assert bridge.results[0].digest
