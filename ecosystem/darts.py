"""darts: `fit` makes the Trainer itself. The bridge goes into its callbacks, in a client written by hand."""

import numpy as np
from darts import TimeSeries
from darts.models import NHiTSModel
from flwr.clientapp import ClientApp

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import FlowerBridge

client = ClientApp()


def forecaster(epochs, *callbacks):
    settings = CPU | {"callbacks": list(callbacks), "enable_progress_bar": False, "logger": False}
    return NHiTSModel(
        input_chunk_length=6, output_chunk_length=2, num_stacks=2, layer_widths=8, batch_size=8,
        n_epochs=epochs, pl_trainer_kwargs=settings,
    )  # fmt: skip


def series(length, seed=0):
    return TimeSeries.from_values(np.random.default_rng(seed).normal(size=length).cumsum().astype(np.float32))


def model():
    return forecaster(0).fit(series(20)).model  # without an epoch, it only makes the module


@client.train()
def train(message, context):
    site = context.node_config["partition-id"]
    bridge = FlowerBridge.from_message(message, context)
    with bridge.seeded():
        forecaster(1, bridge).fit(series((30, 24, 19)[site], site))
    return bridge.reply()


if __name__ == "__main__":
    quiet()
    counts = (23, 17, 12)  # windows of 6 and 2
    check("darts", "NHiTSModel", model, client, counts, outcome="with a client written by hand")
