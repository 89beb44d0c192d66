"""The ClientApp: for each message, the client that the run's config describes."""

from functools import partial

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from digits_app.task import Digits, exchange, model
from lightning_fl_ext import client_app

app = ClientApp()


def data(context: Context) -> Digits:
    """Give the client that is number ``partition-id`` of ``num-partitions`` its share."""
    return Digits(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


@app.train()
@app.evaluate()
@app.query()
def answer(message: Message, context: Context) -> Message:
    """Train, evaluate, or tell who this is."""
    config = context.run_config
    trainer = {"max_epochs": config["local-epochs"], "accelerator": "cpu", "devices": 1}
    # One thread wherever it runs: engines give clients different numbers, and sums depend on it.
    app = client_app(partial(model, config), data, trainer, exchange=exchange(config), num_threads=1)
    return app(message, context)
