"""pytorch-tabular: model and data module as its `TabularModel` prepares them."""

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app


def rows(size, seed=0):
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(draw.normal(size=(size, 3)), columns=["a", "b", "c"])
    return frame.assign(kind=np.resize(["x", "y"], size), target=np.resize([0, 1], size))


def prepared(train, validation):
    tabular = TabularModel(
        DataConfig(target=["target"], continuous_cols=["a", "b", "c"], categorical_cols=["kind"]),
        CategoryEmbeddingModelConfig(task="classification", layers="8", learning_rate=1e-2),
        OptimizerConfig(),
        TrainerConfig(batch_size=8, accelerator="cpu", progress_bar="none"),
        verbose=False,
    )
    source = tabular.prepare_dataloader(train=train, validation=validation, seed=0)
    return tabular, source


def model():
    tabular, source = prepared(rows(40), rows(10))
    return tabular.prepare_model(source)


def data(context):
    site = context.node_config["partition-id"]
    return prepared(rows((28, 18, 12)[site], site), rows(7 + site, 10 + site))[1]


if __name__ == "__main__":
    quiet()
    check("pytorch_tabular", "TabularModel", model, client_app(model, data, CPU), (28, 18, 12), evaluated=(7, 8, 9))
