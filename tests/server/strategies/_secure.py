"""The toy federation under secure aggregation: hand-written clients, engines that lose or alter replies."""

import copy

import _toy as toy
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lightning_fl_ext import SecureAggregation, refuse_plain
from lightning_fl_ext.wire import from_record, to_record

STEPS = ("announce", "share", "mask", "unmask")


def step_of(message):
    return message.content["secure"]["step"] if "secure" in message.content else ""


def make_app(*, required=False, half=None, fit=toy.local_fit, metrics=None, extra=None):
    """A ClientApp written by hand, with the client's half; it trains by formula.

    Args:
        required: Whether plain updates stay.
        half: The client's half, or a function from the context to it. Default: without trusted keys.
        fit: See `_toy.local_fit`.
        metrics: From (partition, round) to the train metrics.
        extra: Told of every call of the train function.
    """
    app = ClientApp()
    default = SecureAggregation()

    def mod(message, context, call_next):
        chosen = half(context) if half else default
        return chosen(message, context, call_next)

    def about(context, **more):
        return ConfigRecord({"client-id": f"{int(context.node_config['partition-id']):02d}", **more})

    @app.train("secure", mods=[mod])
    @app.train(mods=[refuse_plain] if required else [])
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        arrays = fit(from_record(message.content["arrays"]), partition, server_round)
        if extra:
            extra(message, context)
        measured = (metrics or (lambda p, r: {"train_loss": 1 / (p + 3)}))(partition, server_round)
        return Message(
            RecordDict(
                {
                    "arrays": to_record(arrays),
                    "metrics": MetricRecord({**measured, "num-examples": toy.examples(partition)}),
                    "client": about(context, **{"server-round": server_round, "examples-seen": 4711}),
                }
            ),
            reply_to=message,
        )

    @app.query()
    def who(message, context):
        return Message(RecordDict({"client": about(context)}), reply_to=message)

    return app


class Recording:
    """An engine's fault that changes nothing and keeps a copy of all that passes."""

    def __init__(self, faults=None):
        self.faults = faults
        self.passed = []

    def __call__(self, instruction, reply):
        changed = self.faults(instruction, reply) if self.faults else reply
        if changed is not None:
            self.passed.append((copy.deepcopy(instruction), copy.deepcopy(changed)))
        return changed

    def of(self, step):
        return [reply for instruction, reply in self.passed if step_of(instruction) == step]


def lose(client, step, rounds=None):
    """A client that vanishes at a step."""

    def faults(instruction, reply):
        if step_of(instruction) == step and toy.client_of(reply) == client:
            return None
        return reply

    return faults
