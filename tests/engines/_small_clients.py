"""Clients of a few lines, and what is asked of them."""

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def client_app(function):
    """An app that does the same for every train and query message."""
    app = ClientApp()
    app.train()(function)
    app.query()(function)
    return app


def answer(message, **metrics):
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@client_app
def who(message, context):
    return answer(message, partition=context.node_config["partition-id"])


@client_app
def count_calls(message, context):
    calls = context.state["calls"]["n"] + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"n": calls})
    if "fail" in message.content and message.content["fail"]["now"]:
        raise RuntimeError(f"out of memory in call {calls}")
    return answer(message, calls=calls)


def messages(grid, content=None, message_type="train"):
    return [Message(content or RecordDict(), node, message_type) for node in grid.get_node_ids()]


def ask(grid, key, content=None):
    return [reply.content["metrics"][key] for reply in grid.send_and_receive(messages(grid, content))]


def fail(now):
    return RecordDict({"fail": ConfigRecord({"now": now})})
