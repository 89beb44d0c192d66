"""neuralforecast: `fit` makes the Trainer itself and copies its callbacks, in a client written by hand.

It tells Lightning a number of its own for each batch: `windows_batch_size`, 1024, however few windows a site
has. So the number of series is given as `batch_size`.
"""

import numpy as np
import pandas as pd
from flwr.clientapp import ClientApp
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import FlowerBridge

client = ClientApp()


def network(**options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return NHITS(
        h=2, input_size=6, max_steps=4, batch_size=8, mlp_units=3 * [[8, 8]], enable_model_summary=False,
        **CPU, **settings, **options,
    )  # fmt: skip


def series(number, seed):
    draw = np.random.default_rng(seed)
    one = {"ds": range(20), "y": draw.normal(size=20).cumsum()}
    return pd.concat(pd.DataFrame({"unique_id": f"series-{i}", **one}) for i in range(number))


@client.train()
def train(message, context):
    site = context.node_config["partition-id"]
    count = {"batch_size": lambda batch: len(batch["temporal"])}
    bridge = FlowerBridge.from_message(message, context, **count)
    with bridge.seeded():
        NeuralForecast([network(callbacks=[bridge])], freq=1).fit(series((14, 10, 6)[site], site))
    return bridge.reply()


if __name__ == "__main__":
    quiet()
    outcome = "with a client written by hand, and `batch_size=`"
    check("neuralforecast", "NHITS", network, client, (14, 10, 6), outcome=outcome)
