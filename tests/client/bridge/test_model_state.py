"""The global weights reach every module before anything looks at it, in the dtypes they came in."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_fl_ext import FlowerBridge, LightningFLError, WeightExchange
from lightning_fl_ext.client.bridge.model_state import pack_state
from lightning_fl_ext.wire import from_record


@pytest.fixture
def source(kit):
    return kit.arrays_of(kit.fresh_module(1))


def bridge_with(source, **options):
    bridge = FlowerBridge(**options)
    bridge.receive(source)
    return bridge


def test_they_are_loaded_before_the_modules_own_setup(kit, source):
    class Looks(kit.Lit):
        def setup(self, stage):
            self.seen = kit.arrays_of(self)

    module = kit.fit(bridge_with(source), module=kit.fresh_module(2, Looks))
    kit.assert_same(module.seen, source)


def test_they_are_loaded_again_when_the_fit_starts(kit, source):
    class Overwrites(kit.Lit):
        """As pretrained weights or lazily built optimizers do in `setup`."""

        def setup(self, stage):
            nn.init.zeros_(self.layer.weight)

        def on_fit_start(self):
            self.seen = kit.arrays_of(self)

    module = kit.fit(bridge_with(source), module=kit.fresh_module(2, Overwrites))
    kit.assert_same(module.seen, source)


def test_the_sanity_check_sees_them(kit, source):
    module = kit.fresh_module(2, kit.Validated)
    trainer = kit.trainer(bridge_with(source), num_sanity_val_steps=1)
    trainer.fit(module, kit.loader(), kit.loader(n=4))
    np.testing.assert_array_equal(module.validated[0].numpy(), source["layer.weight"])


@pytest.mark.parametrize("hook", ["configure_model", "setup"])
def test_layers_that_the_module_builds_late_get_them(kit, source, hook):
    class Late(kit.built_late(kit.Lit, hook)):
        def on_train_start(self):
            self.seen = kit.arrays_of(self)

    module = kit.fit(bridge_with(source), module=kit.fresh_module(2, Late))
    kit.assert_same(module.seen, source)


def test_an_evaluation_loads_them_into_layers_that_configure_model_builds(kit, source):
    module = kit.fresh_module(2, kit.built_late(kit.Validated))
    kit.trainer(bridge_with(source)).validate(module, kit.loader(), verbose=False)
    np.testing.assert_array_equal(module.validated[0].numpy(), source["layer.weight"])


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", "bf16-mixed", "32-true"])
def test_what_came_as_float32_goes_back_as_float32(kit, source, precision):
    source["norm.num_batches_tracked"] = np.array(41)
    bridge = FlowerBridge.from_message(kit.message(source), kit.context(), keep="all")
    module = kit.fit(bridge, precision=precision, max_epochs=2, module=kit.fresh_module(2))
    reply = from_record(bridge.reply().content["arrays"])
    assert {k: v.dtype for k, v in reply.items()} == {k: v.dtype for k, v in source.items()}
    assert all(r.arrays["layer.weight"].dtype == np.float32 for r in bridge.results)
    assert reply["norm.num_batches_tracked"] == 41 + 6
    expected = module.layer.weight.detach().to(torch.float32).numpy()
    np.testing.assert_array_equal(reply["layer.weight"], expected)
    assert module.layer.weight.dtype == {
        "16-true": torch.float16,
        "bf16-true": torch.bfloat16,
        "64-true": torch.float64,
    }.get(precision, torch.float32)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_module_that_is_cast_already_takes_them(kit, source, precision):
    """Built under `Trainer.init_module`, or left so by an earlier fit."""
    bridge = bridge_with(source)
    trainer = kit.trainer(bridge, precision=precision)
    with trainer.init_module():
        module = kit.Lit()
    for _ in range(2):
        kit.fit(bridge, module=module, precision=precision, max_epochs=0)
        np.testing.assert_array_equal(
            bridge.update.arrays["layer.bias"], _rounded(source["layer.bias"], module)
        )


def _rounded(array, module):
    return torch.from_numpy(array).to(module.layer.weight.dtype).to(torch.float32).numpy()


def test_alone_the_results_have_the_dtypes_of_the_fit(kit):
    bridge = FlowerBridge()
    kit.fit(bridge, precision="bf16-true")
    assert bridge.update.arrays["layer.weight"].dtype.name == "bfloat16"


def test_a_global_model_in_bfloat16_comes_back_in_bfloat16(kit):
    source = FlowerBridge()
    kit.fit(source, precision="bf16-true", max_epochs=0)
    bridge = FlowerBridge.from_message(kit.message(source.update.arrays), kit.context())
    kit.fit(bridge, precision="bf16-true")
    assert from_record(bridge.reply().content["arrays"])["layer.weight"].dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("wrong", "precision"),
    [
        (np.float64, "32-true"),
        (np.float64, "bf16-true"),
        (np.float16, "64-true"),
        (np.int64, "32-true"),
        (np.int64, "bf16-true"),
        (np.int64, "64-true"),
    ],
)
def test_nothing_is_cast_silently_on_the_way_in(kit, source, wrong, precision):
    source["layer.weight"] = source["layer.weight"].astype(wrong)
    with pytest.raises(LightningFLError, match=r"layer\.weight: expected float32"):
        kit.fit(bridge_with(source), module=kit.fresh_module(2), precision=precision)


def test_a_compiled_wrapper_is_named_in_the_error(kit, source):
    prefixed = {f"model.{name}": array for name, array in source.items()}
    with pytest.raises(LightningFLError, match=r"carry the prefix `model\.`"):
        kit.fit(bridge_with(prefixed))


def test_tensors_that_shards_give_as_copies_are_tied_again(monkeypatch):
    from torch.distributed.checkpoint import state_dict

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    copies = {name: value.clone() for name, value in module.state_dict().items()}
    monkeypatch.setattr(state_dict, "get_model_state_dict", lambda model, options: copies)
    strategy = SimpleNamespace(restore_checkpoint_after_setup=True, model=module)
    trainer = SimpleNamespace(strategy=strategy, is_global_zero=True, precision="32-true")
    assert list(pack_state(trainer, module, WeightExchange(), like=None)) == ["a.weight", "b.bias"]
