"""A strategy of one's own that keeps an exact mean's memory from round to round."""

import pytest
from flwr.serverapp.strategy import FedAvg

from lightning_fl_ext import ExactFedAvg, ExactMean, RoundCheckpoint
from lightning_fl_ext.aggregation import InvalidUpdate
from lightning_fl_ext.server import CallbackError
from lightning_fl_ext.server.durability.strategy_state import encode_strategy
from lightning_fl_ext.wire import from_record, to_record


class Keeps(FedAvg):
    order_free = reads_every_dtype = True
    mean = None

    def aggregate_train(self, server_round, replies):
        if self.mean is not None:
            self.mean.reset()
        for reply in replies:
            arrays = from_record(reply.content["arrays"])
            self.mean = self.mean or ExactMean(arrays)
            self.mean.add(arrays, reply.content["metrics"]["num-examples"])
        return to_record(self.mean.result()), None


class Named(Keeps):
    scratch = ("mean",)


class Derived(Named):
    scratch = ("other",)


@pytest.mark.parametrize("strategy", [Named, Derived])
@pytest.mark.parametrize("rounds", [1, 2])
def test_scratch_is_in_no_checkpoint_and_a_run_that_goes_on_ends_the_same(toy, tmp_path, strategy, rounds):
    def fit(max_rounds, folder, made=strategy, **options):
        trainer = toy.make_trainer(
            made(), max_rounds=max_rounds, callbacks=[RoundCheckpoint()], default_root_dir=tmp_path / folder
        )
        return trainer.fit(toy.Net(buffers=True), toy.make_grid(4), **options)

    whole = fit(3, "whole")
    assert whole.digest == fit(3, "exact", ExactFedAvg).digest
    fit(rounds, "cut")
    assert fit(3, "cut", ckpt_path="last").digest == whole.digest


def test_what_is_not_named_is_refused_with_the_remedy(toy, tmp_path):
    trainer = toy.make_trainer(Keeps(), callbacks=[RoundCheckpoint()], default_root_dir=tmp_path)
    with pytest.raises(CallbackError, match=r"`Keeps\.mean` of type .*ExactMean cannot be kept.*`scratch`"):
        trainer.fit(toy.Net(), toy.make_grid(3))


def test_a_text_in_the_place_of_names_is_refused():
    class Odd(FedAvg):
        scratch = "mean"

    with pytest.raises(TypeError, match=r"`Odd\.scratch` must be a tuple .* Got 'mean'"):
        encode_strategy(Odd())


def test_an_update_that_a_strategy_s_mean_refuses_is_told_with_method_round_and_clients(toy):
    class Fractions(Named):
        def aggregate_train(self, server_round, replies):
            mean = ExactMean(from_record(next(iter(replies)).content["arrays"]))
            mean.add({}, 0.5)

    says = r"Fractions\.aggregate_train failed in round 1: update 0: expected .*\. It had read .*`0\d`"
    with pytest.raises(InvalidUpdate, match=says):
        toy.make_trainer(Fractions()).fit(toy.Net(), toy.make_grid(3))
