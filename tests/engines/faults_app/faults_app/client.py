"""Clients that start fast, since they import neither torch nor the package, and fail as they are told."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

if Path("a-package-is-missing").exists():  # in the folder that the SuperNode was started in
    import no_such_package  # noqa: F401


def about(context):
    return ConfigRecord({"client-id": str(context.node_config["partition-id"])})


@app.query()
def query(message, context):
    return Message(RecordDict({"client": about(context)}), reply_to=message)


def secure(message, context, train):
    """The client's half of secure aggregation, each step of it once its order is carried out."""
    from lightning_fl_ext import SecureAggregation  # which takes seconds

    step = message.content["secure"]["step"]
    number = server_round_of(message) if step == "announce" else context.state["secure-about"]["server-round"]
    partition = int(context.node_config["partition-id"])
    carry_out(Path(context.run_config["orders"]) / f"{partition}-{number}-{step}")
    return SecureAggregation()(message, context, train)


def server_round_of(message):
    return int(message.content["config"]["server-round"])


@app.train("secure", mods=[secure])
@app.train()
def train(message, context):
    """Add this client's noise of the round to the weights, once the order for it is carried out."""
    partition = int(context.node_config["partition-id"])
    server_round = server_round_of(message)
    carry_out(Path(context.run_config["orders"]) / f"{partition}-{server_round}")
    rng = np.random.default_rng((partition, server_round))
    fitted = {
        name: array.numpy() + rng.normal(size=array.shape).astype(array.dtype)
        for name, array in message.content["arrays"].items()
    }
    content = {
        "arrays": ArrayRecord({name: Array(array) for name, array in fitted.items()}),
        "metrics": MetricRecord({"num-examples": 10 + 7 * partition}),
        "client": about(context),
    }
    return Message(RecordDict(content), reply_to=message)


def carry_out(order):
    """Do what the file says, if there is one: ``raise``, or ``wait`` until it is gone."""
    if not order.exists():
        return
    print(f"carrying out {order.name}", flush=True)
    if order.read_text() == "raise":
        raise OSError("the disk is full")
    while order.exists():
        time.sleep(0.05)
