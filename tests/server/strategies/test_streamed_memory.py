"""A streamed round holds four replies at a time, with no collector's help, and all rounds one set of sums."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, Message, MetricRecord, RecordDict

from lightning_fl_ext import ExactFedAdam, ExactFedAvg, ExactMean, RoundCallback
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.durability.strategy_state import copy_strategy, encode_strategy
from lightning_fl_ext.server.strategies import exact_fedavg
from lightning_fl_ext.wire import to_record


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
    assert trainer.strategy._mean is None, "nothing is held after the fit"


def test_kept_memory_is_in_no_checkpoint_and_shared_with_no_copy():
    replies = [reply(value) for value in (1.0, 2.0, 6.0)]
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, iter(replies))
    assert "_mean" not in encode_strategy(strategy)[0]
    copied = copy_strategy(strategy)
    mean = copied._empty_mean({"w": np.zeros(2)})
    assert not np.shares_memory(mean._floats._room, strategy._empty_mean({"w": np.zeros(2)})._floats._room)


def test_a_list_of_replies_keeps_no_sums():
    strategy = ExactFedAvg()
    strategy.aggregate_train(1, [reply(1.0), reply(2.0)])
    assert strategy._mean is None


def reply(value):
    content = RecordDict(
        {"arrays": to_record({"w": np.full(2, value)}), "metrics": MetricRecord({"num-examples": 1})}
    )
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
