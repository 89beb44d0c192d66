"""pytorch-forecasting: its temporal fusion transformer, built from its own data set."""

import numpy as np
import pandas as pd
from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import client_app


def series(length, seed=0):
    values = np.random.default_rng(seed).normal(size=length).cumsum().astype(np.float32)
    frame = pd.DataFrame({"time": range(length), "value": values, "series": "a"})
    return TimeSeriesDataSet(
        frame, "time", "value", ["series"], max_encoder_length=6, max_prediction_length=2,
        min_encoder_length=6, time_varying_unknown_reals=["value"],
    )  # fmt: skip


def model():
    return TemporalFusionTransformer.from_dataset(
        series(40),
        hidden_size=4,
        attention_head_size=1,
        hidden_continuous_size=4,
        loss=QuantileLoss(),
        lstm_layers=1,
    )


def data(context):
    site = context.node_config["partition-id"]
    train, validation = series((30, 24, 19)[site], site), series(12 + site, site)
    return Site(
        train.to_dataloader(train=True, batch_size=6, drop_last=False),
        validation.to_dataloader(train=False, batch_size=6),
    )


if __name__ == "__main__":
    quiet()
    client = client_app(model, data, CPU)
    counts = (23, 17, 12)  # windows of 6 and 2
    check("pytorch-forecasting", "TemporalFusionTransformer", model, client, counts, evaluated=(5, 6, 7))
