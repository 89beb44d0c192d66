"""`FlowerBridge` in real fits: what is kept, what is submitted, and the same bridge again."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_fl_ext import FlowerBridge, LightningFLError, WeightExchange, client_app


class Recorder(Callback):
    """An independent record of the weights at every epoch's end and of the module after the fit."""

    def __init__(self, arrays_of):
        self.arrays_of = arrays_of
        self.epochs = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append(self.arrays_of(pl_module))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"keep": 0}, r"`keep` must be 'all', 'last' or a number from 1. Got 0."),
        ({"keep": True}, r"Got True"),
        ({"keep": "some"}, r"Got 'some'"),
        ({"submit": "first"}, r"`submit` must be 'last', 'mean' or 'best'. Got 'first'."),
        ({"submit": "best"}, r"pass `monitor=`"),
        ({"mode": "high"}, r"`mode` must be 'min' or 'max'. Got 'high'."),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error):
    with pytest.raises(ValueError, match=error):
        FlowerBridge(**arguments)


def test_what_is_no_exchange_is_refused_at_once(kit):
    for make in (FlowerBridge, partial(client_app, kit.Lit, lambda _: kit.loader())):
        with pytest.raises(TypeError, match=r"`exchange` must be an exchange, such as .*Got 'head'"):
            make(exchange="head")


def test_it_shows_whose_it_is(kit):
    message = kit.message(kit.arrays_of(kit.Lit()), server_round=4)
    bridge = FlowerBridge.from_message(message, kit.context(3, of=20), exchange=WeightExchange(include="*"))
    assert repr(bridge) == (
        "FlowerBridge(client_id='03', server_round=4, submit='last', keep='last',"
        " exchange=WeightExchange(include=('*',), exclude=()))"
    )


# What is kept


def test_every_epoch_is_a_result_with_its_own_weights(kit):
    bridge, recorder = FlowerBridge(), Recorder(kit.arrays_of)
    kit.fit(bridge, recorder, max_epochs=3)
    assert [r.epoch for r in bridge.results] == [0, 1, 2]
    for result, seen in zip(bridge.results, recorder.epochs, strict=True):
        kit.assert_same(result.arrays, seen)
    assert len({r.digest for r in bridge.results}) == 3


@pytest.mark.parametrize(("keep", "epochs"), [("all", [0, 1, 2, 3]), ("last", [3]), (1, [3]), (3, [1, 2, 3])])
@pytest.mark.parametrize("spooled", [False, True])
def test_keep_says_how_many_epochs_stay(kit, tmp_path, keep, epochs, spooled):
    bridge, recorder = (
        FlowerBridge(keep=keep, spool_dir=str(tmp_path) if spooled else None),
        Recorder(kit.arrays_of),
    )
    kit.fit(bridge, recorder, max_epochs=4)
    assert [r.epoch for r in bridge.results] == epochs
    for result in bridge.results:
        kit.assert_same(result.arrays, recorder.epochs[result.epoch])
    assert len(list(tmp_path.rglob("epochs/*"))) == (len(epochs) if spooled else 0)


def test_spooled_epochs_are_the_same_results_as_those_in_memory(kit, tmp_path):
    bridges = FlowerBridge(), FlowerBridge(spool_dir=str(tmp_path / "made" / "here"))
    for bridge in bridges:
        kit.fit(bridge, module=kit.fresh_module(0), max_epochs=3)
    in_memory, spooled = bridges
    assert [r.digest for r in spooled.results] == [r.digest for r in in_memory.results]
    assert [r.score for r in spooled.results] == [r.score for r in in_memory.results]
    assert [r.metrics for r in spooled.results] == [r.metrics for r in in_memory.results]
    assert spooled.update.digest == in_memory.update.digest


def test_two_bridges_share_a_spool_without_harm(kit, tmp_path):
    bridges = [FlowerBridge(spool_dir=str(tmp_path)) for _ in range(2)]
    digests = []
    for seed, bridge in enumerate(bridges):
        kit.fit(bridge, module=kit.fresh_module(seed))
        digests.append(bridge.results[0].digest)
    assert [bridge.results[0].digest for bridge in bridges] == digests
    assert len(set(digests)) == 2


def test_ordered_results_come_by_score(kit):
    bridge = FlowerBridge(client_id="site-a")
    kit.fit(bridge, max_epochs=4)

    def score(result):  # the formula, written out: first elements of the floating arrays, and the count
        floats = [a for a in result.arrays.values() if a.dtype.kind == "f"]
        return sum(float(a.flat[0]) for a in floats) + result.num_examples

    expected = sorted(bridge.results, key=score)
    ordered = bridge.ordered_results()
    assert [name for name, _, _ in ordered] == ["site-a"] * 4
    assert [count for _, _, count in ordered] == [10] * 4
    for (_, arrays, _), result in zip(ordered, expected, strict=True):
        kit.assert_same(dict(enumerate(arrays)), dict(enumerate(result.arrays.values())))


# What is submitted


def test_the_last_weights_are_those_of_the_module_after_the_fit(kit):
    bridge = FlowerBridge()
    module = kit.fit(bridge, max_epochs=2)
    kit.assert_same(bridge.update.arrays, kit.arrays_of(module))


@pytest.mark.parametrize(("keep", "span"), [("all", slice(None)), (2, slice(-2, None))])
def test_the_mean_is_over_the_kept_epochs_and_exact(kit, keep, span):
    """Epochs of 10, 10 and 4 examples; the reference is the weighted mean in float64, rounded once."""
    bridge, recorder = FlowerBridge(keep=keep, submit="mean"), Recorder(kit.arrays_of)
    kit.fit(bridge, recorder, max_epochs=-1, max_steps=7)
    weights = [10, 10, 4][span]
    assert [r.num_examples for r in bridge.results] == weights
    for name, got in bridge.update.arrays.items():
        stack = np.stack([epoch[name].astype(np.float64) for epoch in recorder.epochs[span]])
        expected = np.average(stack, axis=0, weights=weights)
        expected = np.rint(expected) if got.dtype.kind == "i" else expected
        np.testing.assert_array_equal(got, expected.astype(got.dtype), err_msg=name, strict=True)


class Scripted(Callback):
    """Makes the module log a value for each epoch."""

    def __init__(self, values):
        self.values = values

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        value = self.values[trainer.current_epoch]
        pl_module.log("quality", value, on_step=False, on_epoch=True, batch_size=1)


@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [0.5, 0.25, 0.75, 0.25], 1),
        ("max", [0.5, 0.25, 0.75, 0.25], 2),
        ("max", [0.75, 0.25, 0.5, 0.25], 0),
        ("min", [float("nan"), 0.25, 0.75, 0.5], 1),
        ("max", [float("nan"), 0.25, 0.75, float("nan")], 2),
    ],
)
@pytest.mark.parametrize("spooled", [False, True])
def test_the_best_epoch_by_a_metric(kit, tmp_path, mode, values, best, spooled):
    bridge = FlowerBridge(
        keep="last",
        submit="best",
        monitor="quality",
        mode=mode,
        spool_dir=str(tmp_path) if spooled else None,
    )
    recorder = Recorder(kit.arrays_of)
    kit.fit(bridge, Scripted(values), recorder, max_epochs=4)
    kit.assert_same(bridge.update.arrays, recorder.epochs[best])
    assert [r.epoch for r in bridge.results] == sorted({best, 3})


def test_a_metric_that_is_not_logged_stops_the_first_epoch(kit):
    with pytest.raises(LightningFLError, match=r"`monitor='accuracy'` was not logged .*Logged were: loss"):
        kit.fit(FlowerBridge(submit="best", monitor="accuracy"), max_epochs=3)


def test_the_update_carries_the_logged_scalars(kit):
    bridge = FlowerBridge()
    module = kit.Validated()
    trainer = kit.trainer(bridge, max_epochs=2)
    trainer.fit(module, kit.loader(), kit.loader(n=6))
    assert set(bridge.update.metrics) == {"loss", "val_loss"}
    assert bridge.update.metrics == {k: float(v) for k, v in trainer.callback_metrics.items()}
    assert bridge.results[0].metrics["val_loss"] != bridge.results[1].metrics["val_loss"]


def test_only_what_the_exchange_selects_is_packed_and_loaded(kit):
    source = kit.arrays_of(kit.fresh_module(1))
    exchange = WeightExchange(exclude="layer.*")
    bridge = FlowerBridge(exchange=exchange)
    bridge.receive({k: v for k, v in source.items() if not k.startswith("layer.")})
    module = kit.fresh_module(2)
    before = kit.arrays_of(module)
    kit.fit(bridge, module=module, max_epochs=0)
    assert list(bridge.update.arrays) == [k for k in source if not k.startswith("layer.")]
    after = kit.arrays_of(module)
    kit.assert_same({k: after[k] for k in ("layer.weight",)}, {k: before[k] for k in ("layer.weight",)})


# The same bridge again, and copies of it


def test_a_second_fit_starts_over(kit):
    source = kit.arrays_of(kit.fresh_module(1))
    bridge = FlowerBridge(client_id="a")
    bridge.receive(source, server_round=1)
    kit.fit(bridge, module=kit.fresh_module(2), max_epochs=3)
    first = bridge.update
    kit.fit(bridge, module=kit.fresh_module(3), max_epochs=2)
    assert [r.epoch for r in bridge.results] == [0, 1]
    assert (bridge.update.examples_seen, bridge.update.epochs) == (20, 2)
    assert first.epochs == 3, "what was handed out stays as it was"
    reference = kit.fresh_module(4)
    reference.load_state_dict({k: torch.from_numpy(v) for k, v in source.items()})
    kit.fit(module=reference, max_epochs=2)
    kit.assert_same(bridge.update.arrays, kit.arrays_of(reference))


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 6}], ids=str)
def test_a_trainer_that_is_spent_leaves_the_results_and_says_so(kit, caplog, limit):
    """Lightning trains nothing then, and says so at most in a line of its own."""
    bridge = FlowerBridge(client_id="a")
    trainer, module = kit.trainer(bridge, **limit), kit.Lit()
    trainer.fit(module, kit.loader())
    results, update = [r.digest for r in bridge.results], bridge.update.digest
    assert not [record for record in caplog.records if "this fit trains nothing" in record.message]
    trainer.fit(module, kit.loader())
    assert ([r.digest for r in bridge.results], bridge.update.digest) == (results, update)
    (said,) = [record.message for record in caplog.records if "this fit trains nothing" in record.message]
    assert said.startswith("FlowerBridge(client_id='a'")
    bridge.receive(kit.arrays_of(module))
    trainer.fit(module, kit.loader())
    with pytest.raises(LightningFLError, match="has no update"):
        _ = bridge.update


def test_the_same_trainer_may_be_told_to_train_on(kit):
    bridge = FlowerBridge()
    trainer, module = kit.trainer(bridge, max_epochs=2), kit.Lit()
    trainer.fit(module, kit.loader())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, kit.loader())
    assert [r.epoch for r in bridge.results] == [2]
    assert (bridge.update.steps, bridge.update.epochs, bridge.update.examples_seen) == (3, 1, 10)


def test_receiving_a_new_round_withdraws_the_update_of_the_old_one(kit):
    bridge = FlowerBridge()
    kit.fit(bridge)
    bridge.receive(kit.arrays_of(kit.Lit()), server_round=2)
    with pytest.raises(LightningFLError, match="has no update"):
        _ = bridge.update


def test_results_do_not_change_when_the_module_does(kit):
    bridge = FlowerBridge()
    module = kit.fit(bridge)
    before = bridge.update.digest, {k: v.copy() for k, v in bridge.update.arrays.items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.zero_()
    kit.assert_same(bridge.update.arrays, before[1])


def through_pickle(bridge):
    return pickle.loads(pickle.dumps(bridge))


@pytest.mark.parametrize("spooled", [False, True])
@pytest.mark.parametrize("twin_of", [copy.deepcopy, through_pickle])
def test_a_copy_holds_the_same_and_leaves_the_original_alone(kit, tmp_path, twin_of, spooled):
    message = kit.message(kit.arrays_of(kit.fresh_module(1)))
    options = {"spool_dir": str(tmp_path)} if spooled else {}
    bridge = FlowerBridge.from_message(message, kit.context(), keep="all", **options)
    module = kit.Lit()
    module.notes = "x" * 1_000_000
    kit.fit(bridge, module=module, max_epochs=2)
    assert len(pickle.dumps(bridge)) < 100_000, "the module must not travel with its callback"

    twin = twin_of(bridge)
    assert [r.digest for r in twin.results] == [r.digest for r in bridge.results]
    assert twin.reply().content["metrics"] == bridge.reply().content["metrics"]
    if twin_of is copy.deepcopy:
        kept = [r.digest for r in bridge.results]
        kit.fit(twin, module=kit.fresh_module(9), max_epochs=1)
        assert len(twin.results) == 1
        assert [r.digest for r in bridge.results] == kept


def test_a_best_epoch_by_the_smallest_score_is_doubted(caplog):
    FlowerBridge(submit="best", monitor="some_accuracy")
    FlowerBridge(submit="last", monitor="other_accuracy")
    assert ["goes by its smallest" in record.message for record in caplog.records] == [True]
