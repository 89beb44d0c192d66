"""Replies one at a time."""

import gc
import weakref

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from lightning_fl_ext import LocalGrid
from lightning_fl_ext.engines import stream_replies


def app():
    client = ClientApp()

    @client.query()
    def query(message, context):
        return Message(RecordDict(), reply_to=message)

    return client


def questions(grid):
    return [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]


def test_each_reply_comes_once_in_the_order_of_arrival():
    grid = LocalGrid(app(), 4, arrival=lambda messages: messages[::-1])
    messages = questions(grid)
    replies = [reply.metadata.reply_to_message_id for reply in stream_replies(grid, messages, None)]
    assert replies == [message.metadata.message_id for message in reversed(messages)]


def test_nothing_to_send_is_nothing_to_wait_for():
    assert list(stream_replies(LocalGrid(app(), 1), [], None)) == []


def test_no_more_than_one_reply_is_held():
    grid = LocalGrid(app(), 5)
    earlier = None
    for reply in stream_replies(grid, questions(grid), None):
        if earlier is not None:
            gc.collect()
            assert earlier() is None
        earlier = weakref.ref(reply)
        del reply


@pytest.mark.parametrize("no_id", ["", None])
def test_a_message_that_could_not_be_sent_is_not_waited_for(no_id):
    class Losing(LocalGrid):
        def push_messages(self, messages):
            _, *others = super().push_messages(messages)
            return [no_id, *others]

        def pull_messages(self, message_ids):
            assert no_id not in message_ids
            return super().pull_messages(message_ids)

    grid = Losing(app(), 3)
    assert len(list(stream_replies(grid, questions(grid), None))) == 2


class Remote(LocalGrid):
    in_process = False
    deaf = True

    def pull_messages(self, message_ids):
        return [] if self.deaf else super().pull_messages(message_ids)


def test_waiting_ends_at_the_timeout():
    grid = Remote(app(), 2)
    assert list(stream_replies(grid, questions(grid), 0.02)) == []


def test_a_reminder_of_who_is_missing_is_logged_while_waiting(monkeypatch, caplog):
    monkeypatch.setattr("lightning_fl_ext.engines.streaming._REMIND_SECONDS", 0.0)
    grid = Remote(app(), 2, node_ids=[7, 8])
    list(stream_replies(grid, questions(grid), 0.01, {7: "lyon", 8: "bergen"}.__getitem__))
    assert "waiting for 2 of 2 replies (0 s): `bergen`, `lyon`" in caplog.text


def test_clients_of_this_process_are_not_timed():
    grid = LocalGrid(app(), 3)
    assert len(list(stream_replies(grid, questions(grid), 0.0))) == 3
