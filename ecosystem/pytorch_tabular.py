"""pytorch-tabular: the model and the loaders that its `TabularModel` prepares.

Its data module can be set up once only, which `TabularModel` has done: a Trainer must be given the loaders.
"""

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import CategoryEmbeddingModelConfig

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import client_app


def rows(size, seed=0):
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(draw.normal(size=(size, 3)), columns=["a", "b", "c"])
    return frame.assign(kind=np.resize(["x", "y"], size), target=np.resize([0, 1], size))


def prepared(train, validation):
    tabular = TabularModel(
        data_config=DataConfig(target=["target"], continuous_cols=["a", "b", "c"], categorical_cols=["kind"]),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="8", learning_rate=1e-2),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(batch_size=8, accelerator="cpu", progress_bar="none"),
        verbose=False,
    )
    source = tabular.prepare_dataloader(train=train, validation=validation, seed=0)
    return tabular, source


def model():
    tabular, source = prepared(rows(40), rows(10))
    return tabular.prepare_model(source)


def data(context):
    site = context.node_config["partition-id"]
    _, source = prepared(rows((28, 18, 12)[site], site), rows(6 + site, 10 + site))
    return Site(source.train_dataloader(), source.val_dataloader())


if __name__ == "__main__":
    quiet()
    options = {"evaluated": (6, 7, 8), "outcome": "with its loaders in the place of its data module"}
    check(
        "pytorch_tabular",
        "CategoryEmbeddingModel",
        model,
        client_app(model, data, CPU),
        (28, 18, 12),
        **options,
    )
