"""What would go wrong silently is refused; what is allowed beside it gives the right weights."""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from _modules import built_late
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.nn import DataParallel

from lightning_fl_ext import FlowerBridge
from lightning_fl_ext.client.bridge.refusals import (
    refuse_script_launcher,
    refuse_without_validation,
)

AVERAGING = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1),
    "late_ema": lambda: EMAWeightAveraging(update_starting_at_step=1000),
}


@pytest.mark.parametrize("averaging", AVERAGING.values(), ids=AVERAGING)
def test_an_averaging_callback_before_the_bridge_is_refused(kit, averaging):
    callback, module = averaging(), kit.Lit()
    name = type(callback).__name__
    remedies = rf"callbacks=\[FlowerBridge\(...\), {name}\(...\)\]`; or drop `{name}`"
    with pytest.raises(ValueError, match=rf"`{name}` precedes `FlowerBridge`(?s:.*){remedies}"):
        kit.fit(callback, FlowerBridge(), module=module)
    assert module.sizes == []


class Iterates(Callback):
    """Records the raw weights at the end of every epoch's last batch, before anything averages."""

    def __init__(self, arrays_of):
        self.arrays_of = arrays_of
        self.raw = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.raw[trainer.current_epoch] = self.arrays_of(pl_module)


@pytest.mark.parametrize("averaging", AVERAGING.values(), ids=AVERAGING)
def test_after_the_bridge_epochs_are_raw_and_the_update_is_the_module_after_the_fit(kit, averaging):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge, iterates = FlowerBridge(), Iterates(kit.arrays_of)
    bridge.receive(source)
    module = kit.fresh_module(2)
    kit.fit(bridge, iterates, averaging(), module=module, max_epochs=4)

    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))
    for result in bridge.results:
        for name in ("layer.weight", "layer.bias"):
            np.testing.assert_array_equal(result.arrays[name], iterates.raw[result.epoch][name])


@pytest.mark.parametrize("averaging", [AVERAGING["ema"], AVERAGING["swa"]], ids=["ema", "swa"])
def test_an_average_differs_from_every_iterate_or_the_case_above_shows_nothing(kit, averaging):
    bridge = FlowerBridge()
    kit.fit(bridge, averaging(), max_epochs=4)
    for result in bridge.results[:4]:  # averaging over batch norms appends an epoch that trains nothing
        assert not np.array_equal(bridge.update.arrays["layer.weight"], result.arrays["layer.weight"])


def test_an_average_of_a_single_epoch_is_refused_since_it_undoes_the_training(kit):
    module = kit.Lit()
    remedy = "Train for more epochs(?s:.*)or use `EMAWeightAveraging`"
    with pytest.raises(ValueError, match=rf"`StochasticWeightAveraging` averages(?s:.*){remedy}"):
        kit.fit(FlowerBridge(), AVERAGING["swa"](), module=module, max_epochs=1)
    assert module.sizes == []
    kit.fit(FlowerBridge(), AVERAGING["swa"](), max_epochs=2)


def test_such_an_average_leaves_out_the_last_epoch(kit):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge()
    bridge.receive(source)
    kit.fit(bridge, AVERAGING["swa"](), max_epochs=2)
    expected = (source["layer.weight"] + bridge.results[0].arrays["layer.weight"]) / 2
    np.testing.assert_allclose(bridge.update.arrays["layer.weight"], expected, rtol=1e-6)


class Late:
    """Builds its layer in `configure_model`."""

    def configure_model(self):
        if self.layer is None:
            self.layer = nn.Linear(3, 1)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides.*")
@pytest.mark.parametrize("late", [False, True], ids=["built_at_once", "built_in_configure_model"])
def test_an_average_that_never_starts_gives_back_the_global_weights_not_the_old_ones(kit, late):
    """`EMAWeightAveraging.on_train_end` restores the copy it made in `setup`: it must be of what was sent."""
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge()
    bridge.receive(source)
    module = kit.fresh_module(2)
    if late:
        module = type("LateLit", (Late, kit.Lit), {})()
        module.layer = None
    kit.fit(bridge, AVERAGING["late_ema"](), module=module, max_epochs=2)
    for name in ("layer.weight", "layer.bias"):
        np.testing.assert_array_equal(bridge.update.arrays[name], source[name])


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Stands in for that of Lightning at stages 1 and 2: its optimizer trains a copy of the weights."""

    restore_checkpoint_after_setup = True

    def setup(self, trainer):
        super().setup(trainer)
        self.model = DataParallel(self.lightning_module)  # like an engine: names begin with `module.`
        self.copies = [parameter.detach().clone() for parameter in self.lightning_module.parameters()]

    def optimizer_step(self, optimizer, closure, **options):
        result = super().optimizer_step(optimizer, closure, **options)
        with torch.no_grad():
            for parameter, copy in zip(self.lightning_module.parameters(), self.copies, strict=True):
                copy -= 0.1 * parameter.grad
                parameter.copy_(copy)
        return result


@pytest.fixture
def deepspeed(kit):
    def fit(module, **options):
        bridge = FlowerBridge()
        bridge.receive({k: np.full_like(v, 0.25) for k, v in kit.arrays_of(kit.Lit()).items()})
        trainer = kit.trainer(bridge, max_epochs=2, **options)
        trainer.fit(module, kit.loader())
        return bridge.update

    return fit


def test_deepspeed_below_stage_3_trains_what_was_received(kit, deepspeed):
    update = deepspeed(kit.Lit(), strategy=DeepSpeedStrategy("cpu"), devices=1, accelerator="cpu")
    plain = deepspeed(kit.Lit())
    assert update.arrays.keys() == plain.arrays.keys()
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(update.arrays[name], array, rtol=1e-6)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_deepspeed_with_layers_that_are_built_late_is_refused(kit, deepspeed, hook):
    with pytest.raises(ValueError, match="must have its layers when the fit begins"):
        deepspeed(built_late(kit.Lit, hook)(), strategy=DeepSpeedStrategy("cpu"))


@pytest.mark.parametrize(("strategy", "allowed"), [("ddp", False), ("ddp_fork", True), ("ddp_spawn", True)])
def test_inside_a_client_no_strategy_may_start_the_script_again(kit, strategy, allowed):
    options = {k: v for k, v in kit.QUIET.items() if k != "devices"}
    trainer = L.Trainer(**options, devices=2, strategy=strategy)
    if allowed:
        refuse_script_launcher(trainer)
        return
    with pytest.raises(ValueError, match=r"`DDPStrategy` .* starts the running script.*'ddp_spawn'"):
        refuse_script_launcher(trainer)


def test_evaluating_a_module_without_validation_step_says_what_to_do(kit):
    class Mute(L.LightningModule):
        pass

    class Telling(L.LightningModule):
        def validation_step(self, batch, _):
            pass

    class Data(L.LightningDataModule):
        pass

    class WithLoader(Telling):
        def val_dataloader(self):
            return []

    loader = kit.loader()
    refuse_without_validation(Telling(), loader)
    refuse_without_validation(WithLoader(), Data())
    with pytest.raises(ValueError, match=r"`Mute` has no `validation_step`.*fraction_evaluate=0.0"):
        refuse_without_validation(Mute(), loader)
    with pytest.raises(ValueError, match=r"`Data` has no `val_dataloader`.*fraction_evaluate=0.0"):
        refuse_without_validation(Telling(), Data())


def test_a_client_by_hand_on_several_devices_is_refused_before_anything_starts(kit):
    message = kit.message(kit.arrays_of(kit.fresh_module(0)))
    bridge = FlowerBridge.from_message(message, kit.context())
    options = {k: v for k, v in kit.QUIET.items() if k != "devices"}
    trainer = L.Trainer(**options, devices=2, callbacks=[bridge], max_epochs=1)
    with pytest.raises(ValueError, match=r"Use `client_app`, whose `launcher`"):
        trainer.fit(kit.Lit(), kit.loader())
    assert trainer.strategy.launcher.procs == []
