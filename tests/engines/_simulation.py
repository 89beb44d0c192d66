"""Runs a federation in this process and in Flower's Ray simulation, and prints both digests.

Call it with the numbers of actors and the names of strategies: ``1,2 ExactFedAvg FedAdam``.
"""

import sys
import warnings

import lightning.pytorch as pl
import torch
from flwr.serverapp.strategy import FedAdam
from flwr.simulation import run_simulation

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, run_local, server_app

CLIENTS = 4


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2))

    def training_step(self, batch, _):
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def data(context):
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    x = torch.randn(20 + 3 * int(context.node_config["partition-id"]), 4, generator=generator)
    examples = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    return torch.utils.data.DataLoader(examples, batch_size=8, shuffle=True)


def apps(strategy):
    trainer = FederatedTrainer(max_rounds=2, strategy=strategy, seed=3, enable_progress_bar=False)
    return trainer, server_app(Lit, trainer), client_app(Lit, data, trainer={"accelerator": "cpu"})


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        strategy = {"ExactFedAvg": ExactFedAvg(fraction_train=0.75), "FedAdam": FedAdam()}[name]
        trainer, server, client = apps(strategy)
        run_local(server, client, CLIENTS)
        local = trainer.result.digest
        for actors in map(int, sys.argv[1].split(",")):
            trainer, server, client = apps(strategy)
            backend = {
                "client_resources": {"num_cpus": 2 / actors, "num_gpus": 0.0},
                "init_args": {"num_cpus": 2},
            }
            run_simulation(server, client, CLIENTS, backend_config=backend)
            print("digests", name, actors, local, trainer.result.digest, flush=True)


if __name__ == "__main__":
    main()
