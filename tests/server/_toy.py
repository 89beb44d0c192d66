"""A federation without a Trainer: clients that answer in microseconds, by formula."""

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from lightning_fl_ext import FederatedTrainer, LocalGrid
from lightning_fl_ext.wire import from_record, to_record


class Net(torch.nn.Module):
    """Two floating arrays; with `buffers`, every other kind that a state dict may hold."""

    def __init__(self, buffers=False, size=6):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, size).reshape(2, -1))
        self.bias = torch.nn.Parameter(torch.tensor([0.25, -0.5]))
        if buffers:
            self.narrow = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
            self.brain_float = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
            self.norm = torch.nn.BatchNorm1d(2)
            self.register_buffer("mask", torch.tensor([True, False, True]))


def local_fit(arrays, partition, server_round):
    """What client `partition` makes of the global arrays in a round, in their dtypes."""
    rng = np.random.default_rng((partition, server_round))
    return {name: _step(array, rng) for name, array in arrays.items()}


def _step(array, rng):
    if array.dtype == np.bool_:
        return rng.random(array.shape) > 0.4
    if array.dtype.kind in "iu":
        return np.asarray(array + rng.integers(1, 9, array.shape), dtype=array.dtype)
    return (array.astype(np.float64) + rng.normal(0, 0.3, array.shape)).astype(array.dtype)


def examples(partition):
    return 10 + 7 * partition


def make_app(*, query=True, client_record=True, name=None, metrics=None, fit=local_fit, extra=None, mods=()):
    """A ClientApp written by hand.

    Args:
        query: Whether it answers who it is.
        client_record: Whether its replies say who it is.
        name: From the partition to the client's id. Default: two digits.
        metrics: From (partition, round) to the train metrics.
        fit: See `local_fit`.
        extra: Metrics that every train reply has besides.
        mods: Flower's, around training.
    """
    name = name or (lambda partition: f"{partition:02d}")
    metrics = metrics or (lambda partition, _: {"train_loss": 1.0 / (partition + 3)})
    app = ClientApp()

    def about(context, **more):
        return ConfigRecord({"client-id": name(int(context.node_config["partition-id"])), **more})

    @app.train(mods=list(mods))
    def train(message, context):
        partition = int(context.node_config["partition-id"])
        server_round = int(message.content["config"]["server-round"])
        arrays = fit(from_record(message.content["arrays"]), partition, server_round)
        measured = {**metrics(partition, server_round), **(extra or {}), "num-examples": examples(partition)}
        content = RecordDict({"arrays": to_record(arrays), "metrics": MetricRecord(measured)})
        if client_record:
            content["client"] = about(context, **{"server-round": server_round})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        partition = int(context.node_config["partition-id"])
        arrays = from_record(message.content["arrays"])
        loss = float(np.square(arrays["weight"].astype(np.float64)).sum()) + 0.1 * partition
        content = RecordDict(
            {"metrics": MetricRecord({"val_loss": loss, "num-examples": 1 + partition})},
        )
        if client_record:
            content["client"] = about(context)
        return Message(content, reply_to=message)

    if query:

        @app.query()
        def who(message, context):
            return Message(RecordDict({"client": about(context)}), reply_to=message)

    return app


def make_trainer(strategy=None, **options):
    quiet = {"enable_progress_bar": False, "max_rounds": 2, "seed": 7}
    return FederatedTrainer(strategy=strategy, **{**quiet, **options})


def make_grid(num_clients=5, app=None, grid_class=LocalGrid, **options):
    return grid_class(app or make_app(), num_clients, **options)


def client_of(reply):
    return reply.content["client"]["client-id"] if reply.has_content() and "client" in reply.content else None


def is_train(instruction):
    return instruction.metadata.message_type == "train"


def replace_arrays(reply, change):
    """Let `change` edit the named arrays of a reply; it may also return others."""
    arrays = {name: array.copy() for name, array in from_record(reply.content["arrays"]).items()}
    changed = change(arrays)
    reply.content["arrays"] = to_record(arrays if changed is None else changed)
    return reply
