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


@app.train()
def train(message, context):
    """Add this client's noise of the round to the weights, once the order for it is carried out."""
    partition = int(context.node_config["partition-id"])
    server_round = int(message.content["config"]["server-round"])
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
