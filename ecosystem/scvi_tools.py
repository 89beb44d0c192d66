"""scvi-tools: its variational autoencoder in its own training plan, on its own data module.

Its weight of the KL term follows `current_epoch`, which begins at 0 in every round unless `keep_optimizer`
has it go on. Cells are split into training and validation by the machine's entropy, anew in each round,
unless `scvi.settings.seed` is set.
"""

import anndata
import numpy as np
import scvi
from scvi.dataloaders import DataSplitter
from scvi.model import SCVI
from scvi.module import VAE
from scvi.train import TrainingPlan

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app

GENES = 20
scvi.settings.seed = 0


def model():
    return TrainingPlan(VAE(GENES, n_hidden=8, n_latent=4), n_epochs_kl_warmup=4)


def data(context):
    site = context.node_config["partition-id"]
    cells = np.random.default_rng(site).poisson(3.0, ((30, 20, 15)[site], GENES)).astype(np.float32)
    annotated = anndata.AnnData(cells)
    SCVI.setup_anndata(annotated)
    return DataSplitter(SCVI(annotated).adata_manager, train_size=0.8, batch_size=8)


if __name__ == "__main__":
    quiet()
    client = client_app(model, data, CPU | {"max_epochs": 2}, keep_optimizer=True)
    outcome = "with `scvi.settings.seed = 0` and `keep_optimizer=True`"
    check(
        "scvi-tools", "TrainingPlan(VAE)", model, client, (24, 16, 12), evaluated=(6, 4, 3), outcome=outcome
    )
