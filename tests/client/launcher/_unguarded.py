"""Starts a federation when it is imported, as each process of its clients does."""

import lightning.pytorch as L

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app

client = client_app(L.LightningModule, lambda context: None, {"accelerator": "cpu", "devices": 2})
trainer = FederatedTrainer(2, ExactFedAvg(fraction_evaluate=0.0), enable_progress_bar=False)
run_local(server_app(L.LightningModule, trainer), client, num_clients=2)
