"""A streamed round holds four replies at a time, with no collector's help, and all rounds one set of sums."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from flwr.app import Array, Message, MetricRecord, RecordDict

from lightning_fl_ext import ExactFedAdam, ExactFedAvg, ExactMean, RoundCallback
from lightning_fl_ext.aggregation import InvalidUpdate
from lightning_fl_ext.engines.private import ensure_identity
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.durability.strategy_state import copy_strategy, encode_strategy
from lightning_fl_ext.server.strategies import exact_fedavg
from lightning_fl_ext.wire import from_record, to_record


class CountArrays(RoundCallback):
    """Counts the packed arrays that are alive whenever a reply arrives."""

    def __init__(self):
        self.alive = []

    def on_reply(self, trainer, reply):
        if isinstance(reply, ClientUpdate):
            distinct = {id(o.data) for o in gc.get_objects() if isinstance(o, Array)}
            self.alive.append(len(distinct))


def test_no_more_replies_are_alive_the_more_clients_there_are(toy):
    counting = CountArrays()
    gc.collect()
    gc.disable()
    try:
        toy.make_trainer(callbacks=counting, max_rounds=1).fit(toy.Net(), toy.make_grid(8))
    finally:
        gc.enable()
    assert len(counting.alive) == 8
    assert max(counting.alive[4:]) <= counting.alive[3]


@pytest.mark.parametrize("strategy", [ExactFedAvg, ExactFedAdam])
def test_rounds_share_the_memory_of_their_sums_and_nothing_else(toy, monkeypatch, strategy):
    rooms, trainer = [], toy.make_trainer(strategy(), max_rounds=3)

    class Watched(ExactMean):
        def _begin(self, structure, room=None):
            super()._begin(structure, room)
            rooms.append(self._floats._room)

    expected = toy.make_trainer(strategy(), max_rounds=3).fit(toy.Net(), toy.make_grid(6))
    monkeypatch.setattr(ExactFedAvg, "_empty_mean", lambda self, like: ExactMean(like))
    anew = toy.make_trainer(strategy(), max_rounds=3).fit(toy.Net(), toy.make_grid(6))
    assert [record.digest for record in anew.rounds] == [record.digest for record in expected.rounds]
    monkeypatch.undo()
    monkeypatch.setattr(exact_fedavg, "ExactMean", Watched)
    assert trainer.fit(toy.Net(), toy.make_grid(6)).digest == expected.digest
    assert len(rooms) == 3
    assert rooms[0] is rooms[1] is rooms[2]
    assert not hasattr(trainer.strategy, "_new_mean"), "nothing is held after the fit"


@pytest.mark.parametrize("copied", [copy_strategy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_kept_memory_is_in_no_checkpoint_and_no_copy(copied):
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, iter([reply(1.0), reply(2.0)]))
    assert "_new_mean" in vars(strategy)
    assert "_new_mean" not in encode_strategy(strategy)[0]
    again = copied(strategy)
    assert "_new_mean" not in vars(again)
    assert value_of(again.aggregate_train(2, iter([reply(4.0)]))) == 4
    assert value_of(strategy.aggregate_train(2, iter([reply(6.0)]))) == 6


def test_two_rounds_at_once_do_not_share_their_sums():
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, iter([reply(1.0)]))

    def replies():
        yield from (reply(value) for value in (1.0, 2.0, 3.0, 4.0, 5.0))
        assert value_of(strategy.aggregate_train(1, iter([reply(80.0)]))) == 80
        yield reply(9.0)

    assert value_of(strategy.aggregate_train(2, replies())) == 4


def test_a_copy_does_not_take_back_the_round_of_its_original():
    strategy = ExactFedAdam(buffers=())
    strategy._like = {"w": np.zeros(2)}
    strategy.aggregate_train(1, [reply(1.0)])
    moment = strategy.m_t["w"].copy()
    copy_strategy(strategy).end_round(void=True)
    assert (strategy.m_t["w"] == moment).all()


def test_a_round_that_failed_leaves_the_next_no_bit():
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, iter([reply(1.0)]))
    with pytest.raises(InvalidUpdate):
        strategy.aggregate_train(2, (reply(value) for value in (1.0, 2.0, 3.0, 4.0, np.nan)))
    assert value_of(strategy.aggregate_train(3, iter([reply(6.0)]))) == 6


def test_a_list_of_replies_keeps_no_sums():
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, [reply(1.0), reply(2.0)])
    assert "_new_mean" not in vars(strategy)


def value_of(aggregated):
    return from_record(aggregated[0])["w"][0]


def reply(value):
    content = RecordDict(
        {"arrays": to_record({"w": np.full(2, value)}), "metrics": MetricRecord({"num-examples": 1})}
    )
    ensure_identity()
    return Message(content, dst_node_id=1, message_type="train")


def test_updates_are_gathered_by_four_and_let_go_of():
    class Array(np.ndarray):
        """One that can be watched."""

    def updates(sizes):
        for size in sizes:
            array = np.zeros(size, np.uint8).view(Array)
            watched.append(weakref.ref(array))
            yield {"w": array}, 1
            del array

    watched, groups = [], []
    for several in exact_fedavg.gather(updates([1, 2, 3, 4, 5, 200, 60, 60, 7])):
        assert [reference() is None for reference in watched] == [True] * sum(map(len, groups)) + [
            False
        ] * len(several)
        groups.append([arrays["w"].size for arrays, _ in several])
        several.clear()
    assert groups == [[1, 2, 3, 4], [5, 200, 60, 60], [7]]
