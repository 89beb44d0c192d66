"""A federation of a tensor parallel client and one under FSDP2, and a plain one: prints what they say."""

import json
import logging
import sys

import lightning.pytorch as L
import torch
from _lines import LateNet, rows
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app

PLANS = [(1, 2), (2, 1)]
"""Data parallel and tensor parallel size by client."""


class Lit(LateNet):
    def __init__(self):
        super().__init__()
        self.seen = SumMetric()

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.seen.update(batch[0])
        self.log("seen", self.seen)


class Data(L.LightningDataModule):
    def __init__(self, client):
        super().__init__()
        self.rows = rows(9, seed=client)

    def train_dataloader(self):  # one step over all rows, however many processes share them
        return DataLoader(TensorDataset(*self.rows[:8]), batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def data(context):
    return Data(int(context.node_config["partition-id"]))


def plans(context):
    dp, tp = PLANS[int(context.node_config["partition-id"])]
    strategy = ModelParallelStrategy(data_parallel_size=dp, tensor_parallel_size=tp)
    return {"accelerator": "cpu", "devices": dp * tp, "strategy": strategy}


mixed = client_app(Lit, data, plans)
kept = client_app(Lit, data, plans, launcher="kept")
plain = client_app(Lit, data, {"accelerator": "cpu", "devices": 1})


def federate(client, fraction_evaluate):
    strategy = ExactFedAvg(fraction_evaluate=fraction_evaluate)
    trainer = FederatedTrainer(1, strategy, seed=3, enable_progress_bar=False)

    def model():
        module = Lit()
        module.configure_model()
        return module

    run_local(server_app(model, trainer), client, num_clients=2)
    record = trainer.rounds[-1]
    assert not record.rejected, record.rejected
    weights = {name: value.flatten().tolist() for name, value in trainer.result.model.state_dict().items()}
    counts = [site.num_examples for _, site in sorted(record.sites.items())]
    return {**weights, "metrics": dict(record.metrics), "counts": counts}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    name, fraction_evaluate = sys.argv[1:]
    told = [federate(client, float(fraction_evaluate)) for client in (plain, globals()[name])]
    print("RESULT " + json.dumps(told))
