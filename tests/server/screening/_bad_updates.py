"""Replies with a fault, and a fit whose clients send them."""

from flwr.app import MetricRecord

STREAMED_AND_COLLECTED = ("ExactFedAvg", "FedAvg", "FedMedian")


def arrays(change):
    def alter(toy, reply):
        return toy.replace_arrays(reply, change)

    return alter


def metric(key, value):
    def alter(toy, reply):
        record = dict(reply.content["metrics"])
        record.pop(key, None)
        reply.content["metrics"] = MetricRecord(record if value is None else {**record, key: value})
        return reply

    return alter


def config(key, value):
    def alter(toy, reply):
        reply.content["client"][key] = value
        return reply

    return alter


def put(name, index, value):
    def change(named):
        named[name][index] = value

    return arrays(change)


def fit(toy, strategy, faults=None, **options):
    trainer = toy.make_trainer(strategy, max_update_norm=50.0, **options)
    return trainer.fit(toy.Net(), toy.make_grid(faults=faults))
