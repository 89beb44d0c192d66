"""A streamed round holds one reply at a time, or a few small ones, without the garbage collector's help."""

import gc

import pytest
from flwr.app import Array

from lightning_fl_ext import RoundCallback
from lightning_fl_ext.aggregation import streamed
from lightning_fl_ext.results import ClientUpdate


class CountArrays(RoundCallback):
    """Counts the packed arrays that are alive whenever a reply arrives."""

    def __init__(self):
        self.alive = []

    def on_reply(self, trainer, reply):
        if isinstance(reply, ClientUpdate):
            distinct = {id(o.data) for o in gc.get_objects() if isinstance(o, Array)}
            self.alive.append(len(distinct))


@pytest.mark.parametrize("large", [1, streamed.LARGE])
def test_no_more_replies_are_alive_the_more_clients_there_are(toy, monkeypatch, large):
    monkeypatch.setattr(streamed, "LARGE", large)
    counting = CountArrays()
    gc.collect()
    gc.disable()
    try:
        toy.make_trainer(callbacks=counting, max_rounds=1).fit(toy.Net(), toy.make_grid(8))
    finally:
        gc.enable()
    assert len(counting.alive) == 8
    assert max(counting.alive[1:]) <= counting.alive[1]
