"""What a hostile client makes of its replies."""

import copy

from flwr.app import ConfigRecord, MetricRecord

from lightning_fl_ext.metrics import MetricPack
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, Scalar, StageMetrics

ENTRIES_BYTES = 40_000
"""What a client can add to a round's record at most."""


def is_evaluation(instruction):
    return instruction.metadata.message_type == "evaluate"


def metrics(**more):
    def alter(toy, reply):
        reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **more})
        return reply

    return alter


def record(name, value):
    def alter(toy, reply):
        reply.content[name] = copy.deepcopy(value)
        return reply

    return alter


def renamed(**names):
    """Give the records of a reply other names."""

    def alter(toy, reply):
        found = {names.get(name, name): value for name, value in list(reply.content.items())}
        for name in list(reply.content):
            del reply.content[name]
        for name, value in found.items():
            reply.content[name] = value
        return reply

    return alter


def states_of(scalars, examples=5, names=None):
    told = StageMetrics(MetricPack({}, None, examples), names or {}, scalars)
    return ConfigRecord({"validate": told.to_bytes()})


def reports(**values):
    """Report numbers, and tell as one of this package's clients how they came about."""

    def alter(toy, reply):
        examples = int(reply.content["metrics"]["num-examples"])
        scalars = {name: Scalar("mean", examples) for name in values}
        reply = metrics(**values)(toy, reply)
        return record(METRIC_STATES, states_of(scalars, examples))(toy, reply)

    return alter
