"""`FlowerBridge` between a message of Flower and the reply."""

import numpy as np
import pytest
import torch

from lightning_fl_ext import FlowerBridge, LightningFLError
from lightning_fl_ext.wire import from_record


def test_a_fit_between_message_and_reply(kit):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge.from_message(kit.message(source, server_round=3), kit.context(4, of=12))
    module = kit.fit(bridge, module=kit.fresh_module(2), max_epochs=2)
    reply = bridge.reply()

    reference = kit.fresh_module(2)
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in source.items()})
    kit.fit(module=reference, max_epochs=2)
    kit.assert_same(from_record(reply.content["arrays"]), kit.arrays_of(reference))
    kit.assert_same(kit.arrays_of(module), kit.arrays_of(reference))

    assert reply.metadata.reply_to_message_id == "train-3"
    assert dict(reply.content["client"]) == {
        "client-id": "04",
        "server-round": 3,
        "examples-seen": 20,
        "steps": 6,
        "epochs": 2,
    }
    assert reply.content["metrics"]["num-examples"] == 10
    assert reply.content["metrics"]["loss"] == pytest.approx(bridge.update.metrics["loss"])
    assert len(reply.content.array_records) == len(reply.content.metric_records) == 1
    assert len(bridge.results) == 1, "from_message keeps the last epoch unless told otherwise"


def test_from_message_keeps_every_epoch_for_a_mean(kit):
    message = kit.message(kit.arrays_of(kit.Lit()))
    bridge = FlowerBridge.from_message(message, kit.context(), submit="mean")
    kit.fit(bridge, max_epochs=3)
    assert len(bridge.results) == 3


def test_a_message_without_weights_is_refused(kit):
    with pytest.raises(LightningFLError, match="a train message must hold exactly one ArrayRecord"):
        FlowerBridge.from_message(kit.message(), kit.context())


def test_weights_that_do_not_fit_are_refused_before_training(kit):
    source = kit.arrays_of(kit.Lit())
    source["layer.weight"] = source["layer.weight"][:, :2]
    bridge = FlowerBridge.from_message(kit.message(source), kit.context())
    module = kit.fresh_module(0)
    with pytest.raises(
        LightningFLError, match=r"layer.weight: expected float32\[1, 3\], got float32\[1, 2\]"
    ):
        kit.fit(bridge, module=module)
    assert module.sizes == []


@pytest.mark.parametrize("entry", ["validate", "test"])
def test_an_evaluation_is_of_the_weights_that_were_sent(kit, entry):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge.from_message(kit.message(source, "evaluate", 2), kit.context(client_id="b"))
    trainer = kit.trainer(bridge)
    getattr(trainer, entry)(kit.fresh_module(2, kit.Validated), kit.loader(), verbose=False)
    reply = bridge.reply()

    reference = kit.trainer()
    getattr(reference, entry)(kit.fresh_module(1, kit.Validated), kit.loader(), verbose=False)
    name = {"validate": "val_loss", "test": "test_loss"}[entry]
    assert reply.content["metrics"][name] == float(reference.callback_metrics[name])
    assert reply.content["metrics"]["num-examples"] == 10
    assert reply.content["client"]["server-round"] == 2
    assert not reply.content.array_records
    assert bridge.evaluation.num_examples == 10


def test_an_evaluation_over_several_loaders_counts_them_all(kit):
    class Several(kit.Validated):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    bridge = FlowerBridge()
    kit.trainer(bridge).validate(Several(), [kit.loader(10), kit.loader(7)], verbose=False)
    assert bridge.evaluation.num_examples == 17


def test_validating_after_a_fit_sees_the_trained_weights_and_keeps_the_update(kit):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge.from_message(kit.message(source), kit.context())
    module, trainer = kit.Validated(), kit.trainer(bridge)
    trainer.fit(module, kit.loader(), kit.loader(n=6))
    trained = kit.arrays_of(module)
    module.validated.clear()
    trainer.validate(module, kit.loader(n=6), verbose=False)

    np.testing.assert_array_equal(module.validated[0].numpy(), trained["layer.weight"])
    kit.assert_same(from_record(bridge.reply().content["arrays"]), trained)
    assert bridge.evaluation.num_examples == 6


def test_a_reply_needs_a_message_and_an_outcome(kit):
    with pytest.raises(LightningFLError, match="make the bridge with `FlowerBridge"):
        FlowerBridge().reply()
    source = kit.arrays_of(kit.Lit())
    with pytest.raises(LightningFLError, match="client `0` has no update: no fit has ended"):
        FlowerBridge.from_message(kit.message(source), kit.context()).reply()
    with pytest.raises(LightningFLError, match="client `0` has no evaluation: no validation or test"):
        FlowerBridge.from_message(kit.message(source, "evaluate"), kit.context()).reply()


def test_whatever_number_a_module_logs_is_sent_as_a_float(kit):
    class Logs(kit.Lit):
        def on_train_epoch_end(self):
            self.log_dict({"flag": True, "large": 2**64, "half": torch.tensor(0.5, dtype=torch.bfloat16)})

    bridge = FlowerBridge.from_message(kit.message(kit.arrays_of(kit.Lit())), kit.context())
    kit.fit(bridge, module=Logs())
    metrics = bridge.reply().content["metrics"]
    assert {type(metrics[name]) for name in ("flag", "large", "half")} == {float}
    assert (metrics["flag"], metrics["large"], metrics["half"]) == (1.0, 2.0**64, 0.5)
