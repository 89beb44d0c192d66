"""The engine in this process, driven by Flower's own messages and apps."""

import copy

import numpy as np
import pytest
from _small_clients import answer, ask, client_app, count_calls, fail, messages, who
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from lightning_fl_ext.engines import LocalGrid

# Clients and their contexts


def test_each_client_has_its_partition_and_the_run_config():
    @client_app
    def tell(message, context):
        return Message(
            RecordDict({"c": ConfigRecord({**context.node_config, **context.run_config})}), reply_to=message
        )

    grid = LocalGrid(tell, 3, run_config={"lr": 0.5})
    told = [dict(reply.content["c"]) for reply in grid.send_and_receive(messages(grid))]
    assert told == [{"partition-id": i, "num-partitions": 3, "lr": 0.5} for i in range(3)]


def test_node_ids_are_random_distinct_and_can_be_chosen():
    first, second = (list(LocalGrid(who, 50).get_node_ids()) for _ in range(2))
    assert len({*first, *second}) == 100
    assert first != sorted(first)
    assert list(LocalGrid(who, 2, node_ids=[9, 7]).get_node_ids()) == [9, 7]


def test_every_client_keeps_its_own_context_across_messages():
    grid = LocalGrid(count_calls, 3)
    assert ask(grid, "calls") == [1, 1, 1]
    (reply,) = grid.send_and_receive(messages(grid)[:1])
    assert reply.content["metrics"]["calls"] == 2
    assert ask(grid, "calls") == [3, 2, 2]


def test_a_context_is_committed_only_on_success():
    grid = LocalGrid(count_calls, 1)
    assert ask(grid, "calls") == [1]
    (failed,) = grid.send_and_receive(messages(grid, fail(True)))
    assert failed.has_error()
    assert ask(grid, "calls") == [2]


def test_what_a_client_appended_before_it_failed_is_undone():
    @client_app
    def append(message, context):
        record = context.state.setdefault("r", MetricRecord({"list": [0]}))
        record["list"].append(1)
        if message.content["fail"]["now"]:
            raise RuntimeError
        return answer(message, length=len(record["list"]))

    grid = LocalGrid(append, 1)
    assert ask(grid, "length", fail(False)) == [2]
    list(grid.send_and_receive(messages(grid, fail(True))))
    assert ask(grid, "length", fail(False)) == [3]


# What goes wrong


def test_an_exception_becomes_an_error_reply_with_the_traceback_and_the_others_go_on():
    @client_app
    def second_fails(message, context):
        if context.node_config["partition-id"] == 1:
            raise ValueError("corrupt scan 17")
        return answer(message, ok=1)

    grid = LocalGrid(second_fails, 3)
    sent = messages(grid)
    replies = list(grid.send_and_receive(sent))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    error = replies[1]
    assert error.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "Traceback" in error.error.reason
    assert "corrupt scan 17" in error.error.reason
    assert "second_fails" in error.error.reason
    assert error.metadata.src_node_id == sent[1].metadata.dst_node_id
    assert error.metadata.reply_to_message_id == sent[1].metadata.message_id


def test_a_client_that_forgets_to_return_a_message_is_told_so():
    grid = LocalGrid(client_app(lambda message, context: None), 1)
    (reply,) = grid.send_and_receive(messages(grid))
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "must return a `Message`. Got NoneType" in reply.error.reason


def test_a_message_type_the_app_does_not_handle_becomes_an_error_reply():
    grid = LocalGrid(who, 1)
    (reply,) = grid.send_and_receive(messages(grid, message_type="evaluate"))
    assert "No evaluate function registered" in reply.error.reason


def assert_unavailable(reply, instruction):
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
    assert reply.metadata.src_node_id == 1  # the SuperLink's
    assert reply.metadata.reply_to_message_id == instruction.metadata.message_id


def test_a_vanished_client_becomes_an_error_reply_from_the_superlink():
    def second_vanishes(instruction, reply):
        return None if reply.content["metrics"]["partition"] == 1 else reply

    grid = LocalGrid(who, 3, faults=second_vanishes)
    sent = messages(grid)
    replies = list(grid.send_and_receive(sent))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert_unavailable(replies[1], sent[1])


def test_a_node_that_was_never_there_is_unavailable():
    grid = LocalGrid(who, 1, node_ids=[5])
    sent = [Message(RecordDict(), 6, "train")]
    assert_unavailable(*grid.send_and_receive(sent), *sent)


def test_faults_can_replace_a_reply_and_see_error_replies_too():
    seen = []

    def tamper(instruction, reply):
        seen.append(reply.has_error())
        return answer(instruction, calls=-1)

    grid = LocalGrid(count_calls, 1, faults=tamper)
    assert ask(grid, "calls", fail(False)) == [-1]
    assert ask(grid, "calls", fail(True)) == [-1]
    assert seen == [False, True]


def test_keyboard_interrupt_is_not_swallowed():
    @client_app
    def interrupted(message, context):
        raise KeyboardInterrupt

    grid = LocalGrid(interrupted, 1)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(messages(grid))


@pytest.mark.parametrize(("count", "ids"), [(0, None), (-1, None), (2, [1]), (2, [1, 1]), (1, [1, 2])])
def test_impossible_clients_are_refused(count, ids):
    with pytest.raises(ValueError, match=r"`num_clients` must|`node_ids` must"):
        LocalGrid(who, count, node_ids=ids)


# Order and streaming


def test_arrival_decides_the_order_in_which_clients_run_and_answer():
    ran = []

    @client_app
    def log(message, context):
        ran.append(context.node_config["partition-id"])
        return answer(message, partition=ran[-1])

    grid = LocalGrid(log, 4, arrival=lambda batch: [batch[i] for i in (2, 0, 3, 1)])
    assert ask(grid, "partition") == [2, 0, 3, 1] == ran


@pytest.mark.parametrize("arrival", [lambda batch: batch[1:], lambda batch: [*batch, batch[0]]])
def test_arrival_must_neither_lose_nor_repeat_messages(arrival):
    grid = LocalGrid(who, 2, arrival=arrival)
    with pytest.raises(ValueError, match="`arrival` must return the messages it was given"):
        grid.push_messages(messages(grid))


def test_a_reply_names_the_message_it_answers_in_any_order():
    grid = LocalGrid(who, 3, arrival=lambda batch: batch[::-1])
    sent = {message.metadata.dst_node_id: message for message in messages(grid)}
    for reply in grid.send_and_receive(sent.values()):
        question = sent[reply.metadata.src_node_id]
        assert reply.metadata.reply_to_message_id == question.metadata.message_id
        assert reply.metadata.message_id not in ("", question.metadata.message_id)


def test_pulling_runs_one_client_at_a_time():
    ran = []

    @client_app
    def log(message, context):
        ran.append(context.node_config["partition-id"])
        return answer(message, partition=ran[-1])

    grid = LocalGrid(log, 3)
    ids = list(grid.push_messages(messages(grid)))
    assert ran == []
    for expected in ([0], [0, 1], [0, 1, 2]):
        (reply,) = grid.pull_messages(ids)
        assert ran == expected
        assert reply.metadata.reply_to_message_id == ids[len(ran) - 1]
    assert list(grid.pull_messages(ids)) == []


def test_only_replies_that_were_asked_for_are_given():
    grid = LocalGrid(who, 3)
    first, second, third = messages(grid)
    (first_id,) = grid.push_messages([first])
    (second_id,) = grid.push_messages([second])
    (reply,) = grid.send_and_receive([third])
    assert reply.content["metrics"]["partition"] == 2
    (reply,) = grid.pull_messages([second_id])
    assert reply.content["metrics"]["partition"] == 1
    (reply,) = grid.pull_messages([first_id])
    assert reply.content["metrics"]["partition"] == 0


# Nothing is shared


def shared_content():
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.ones(2))}),
            "config": ConfigRecord({"list": [1, 2], "lr": 0.1}),
        }
    )


def test_a_client_cannot_change_what_the_next_one_or_the_server_sees():
    seen = []

    @client_app
    def vandal(message, context):
        content = message.content
        seen.append(
            (content["arrays"]["w"].numpy().tolist(), copy.deepcopy(dict(content["config"])), sorted(content))
        )
        content["config"]["list"].append(3)
        content["config"]["lr"] = 0.0
        content["arrays"]["w"].data = b"gone"
        del content["arrays"]["w"]
        content["more"] = ConfigRecord()
        return answer(message, ok=1)

    grid, content = LocalGrid(vandal, 3), shared_content()
    list(grid.send_and_receive(messages(grid, content)))
    assert seen == [([1.0, 1.0], {"list": [1, 2], "lr": 0.1}, ["arrays", "config"])] * 3
    assert content == shared_content()


def test_the_server_cannot_change_a_clients_state_through_its_reply():
    @client_app
    def keep(message, context):
        record = context.state.setdefault("kept", MetricRecord({"values": [1]}))
        return Message(RecordDict({"metrics": record}), reply_to=message)

    grid = LocalGrid(keep, 1)
    (reply,) = grid.send_and_receive(messages(grid))
    reply.content["metrics"]["values"].append(2)
    assert ask(grid, "values") == [[1]]


def test_a_client_cannot_change_its_reply_or_context_afterwards():
    kept = []

    @client_app
    def keep(message, context):
        kept.append(answer(message, values=[1]))
        return kept[-1]

    grid = LocalGrid(keep, 1)
    (reply,) = grid.send_and_receive(messages(grid))
    kept[0].content["metrics"]["values"].append(2)
    assert reply.content["metrics"]["values"] == [1]
