"""A streamed round holds four replies at a time, without the garbage collector's help."""

import gc
import weakref

import numpy as np
from flwr.app import Array

from lightning_fl_ext import RoundCallback
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.strategies import exact_fedavg


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
