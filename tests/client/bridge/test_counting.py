"""Examples are counted as the module was given them, whatever the Trainer's options."""

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, IterableDataset

from lightning_fl_ext import FlowerBridge, LightningFLError
from lightning_fl_ext.client.bridge.counting import ExampleCounter


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.full((3,), float(i)), torch.ones(1)) for i in range(11))


class StopEarly(Callback):
    """Stops in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.current_epoch == 1 and batch_idx == 1


# 10 examples in batches of 4 unless said otherwise: Trainer's options, the data's, each epoch's count, steps.
CASES = {
    "plain": ({"max_epochs": 2}, {}, [10, 10], 6),
    "drop_last": ({"max_epochs": 2}, {"drop_last": True}, [8, 8], 4),
    "accumulation": ({"max_epochs": 2, "accumulate_grad_batches": 2}, {}, [10, 10], 4),
    "limit_train_batches": ({"max_epochs": 2, "limit_train_batches": 2}, {}, [8, 8], 4),
    "max_steps_in_mid_epoch": ({"max_epochs": -1, "max_steps": 4}, {}, [10, 4], 4),
    "early_stop_in_mid_epoch": ({"max_epochs": 5, "callbacks": [StopEarly()]}, {}, [10, 8], 5),
    "fast_dev_run": ({"fast_dev_run": True}, {}, [4], 1),
    "fast_dev_run_of_two": ({"fast_dev_run": 2}, {}, [8], 2),
    "overfit_batches": ({"max_epochs": 2, "overfit_batches": 1}, {}, [4, 4], 2),
    "val_check_interval": ({"max_epochs": 2, "val_check_interval": 1}, {"validate": True}, [10, 10], 6),
    "sanity_check_does_not_count": ({"num_sanity_val_steps": 2}, {"validate": True}, [10], 3),
    "one_batch_larger_than_the_data": ({}, {"batch_size": 64}, [10], 1),
}


@pytest.mark.parametrize(("options", "data", "counts", "steps"), CASES.values(), ids=CASES)
def test_every_epoch_counts_what_the_module_was_given(kit, options, data, counts, steps):
    data = dict(data)
    validate = data.pop("validate", False)
    callbacks = options.get("callbacks", [])
    bridge, module = FlowerBridge(), kit.Validated() if validate else kit.Lit()
    trainer = kit.trainer(bridge, *callbacks, **{k: v for k, v in options.items() if k != "callbacks"})
    trainer.fit(module, kit.loader(**data), kit.loader(n=6) if validate else None)

    assert [r.num_examples for r in bridge.results] == counts
    assert sum(counts) == sum(module.sizes)
    update = bridge.update
    assert (update.num_examples, update.examples_seen, update.steps, update.epochs) == (
        max(counts),
        sum(counts),
        steps,
        len(counts),
    )


def test_an_iterable_dataset_of_unknown_length(kit):
    bridge = FlowerBridge()
    kit.fit(bridge, data=DataLoader(Stream(), batch_size=4), max_epochs=2)
    assert [r.num_examples for r in bridge.results] == [11, 11]


def test_barebones(kit):
    class Silent(kit.Lit):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    bridge = FlowerBridge()
    trainer = L.Trainer(barebones=True, max_epochs=2, accelerator="cpu", callbacks=[bridge])
    trainer.fit(Silent(), kit.loader())
    assert [r.num_examples for r in bridge.results] == [10, 10]
    assert bridge.update.metrics == {}


def test_batches_that_the_module_skips_do_not_count(kit):
    class SkipsTheRest(kit.Lit):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else None

    bridge = FlowerBridge()
    module = kit.fit(bridge, module=SkipsTheRest(), max_epochs=2)
    assert [r.num_examples for r in bridge.results] == module.sizes == [4, 4]


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
def test_a_batch_whose_step_returns_none_was_seen_and_counts(kit):
    class Skips(kit.Lit):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    bridge = FlowerBridge()
    module = kit.fit(bridge, module=Skips())
    assert bridge.update.examples_seen == sum(module.sizes) == 10


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*")
def test_a_step_that_takes_the_iterator(kit):
    class Takes(kit.Lit):
        def training_step(self, dataloader_iter):
            batch, *_ = next(dataloader_iter)
            self.sizes.append(len(batch[0]))
            return self.loss(batch)

    bridge = FlowerBridge()
    module = kit.fit(bridge, module=Takes(), max_epochs=2)
    assert [r.num_examples for r in bridge.results] == [10, 10]
    assert sum(module.sizes) == 20


def test_manual_optimization(kit):
    class Manual(kit.Lit):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    bridge = FlowerBridge()
    kit.fit(bridge, module=Manual())
    assert (bridge.update.num_examples, bridge.update.steps) == (10, 3)


def test_a_function_may_say_how_many_examples_a_batch_holds(kit):
    """Pairs of examples: Lightning's guess, the first dimension, would be half the truth."""
    bridge = FlowerBridge(batch_size=lambda batch: 2 * len(batch[0]))
    kit.fit(bridge)
    assert bridge.update.num_examples == 20


def test_a_batch_without_a_size_names_the_remedy(kit):
    class Words(kit.Lit):
        def training_step(self, batch, batch_idx):
            return self.layer.weight.sum()

    def data():
        return DataLoader(Stream(), batch_size=2, collate_fn=lambda rows: {"n": None, "rows": str(len(rows))})

    with pytest.raises(LightningFLError, match=r"type dict holds: .*`FlowerBridge\(batch_size=\.\.\.\)`"):
        kit.fit(FlowerBridge(), module=Words(), data=data())
    bridge = FlowerBridge(batch_size=lambda batch: int(batch["rows"]))
    kit.fit(bridge, module=Words(), data=data())
    assert bridge.update.num_examples == 11


def test_a_validation_in_a_fit_need_not_tell_how_many_examples_it_has(kit):
    class Words(kit.Lit):
        def validation_step(self, batch, batch_idx):
            pass

    bridge = FlowerBridge()
    words = DataLoader([{"n": None}] * 4, batch_size=2, collate_fn=lambda rows: rows)
    kit.trainer(bridge).fit(Words(), kit.loader(), words)
    assert bridge.update.num_examples == 10


def test_a_fit_without_batches_still_has_an_update(kit):
    bridge = FlowerBridge()
    module = kit.fit(bridge, max_epochs=0)
    assert bridge.results == []
    assert (bridge.update.num_examples, bridge.update.epochs) == (0, 0)
    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))


def test_counts_over_epochs():
    counter = ExampleCounter()
    single = _one_process()
    for sizes in ([4, 4, 2], [4]):
        for size in sizes:
            counter.add(torch.zeros(size, 3))
        counter.close_epoch(single)
    assert (counter.epochs, counter.total, counter.largest_epoch) == (2, 14, 10)


def _one_process():
    return L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=False)


def test_the_loaders_of_an_evaluation_are_counted_one_by_one(kit):
    class Several(kit.Validated):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    counts = []

    class Counts(FlowerBridge):
        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            counts.append(self._evaluated.by_dataloader)

    kit.trainer(Counts()).validate(Several(), [kit.loader(10), kit.loader(7), kit.loader(3)], verbose=False)
    assert counts == [(10, 7, 3)]
