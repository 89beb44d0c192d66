"""Two clients, the first of which trains in two processes."""

import json
from pathlib import Path

import lightning.pytorch as L
import torch
from flwr.serverapp import ServerApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.1))

    def training_step(self, batch, _):
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def partition(context):
    return int(context.node_config["partition-id"])


def data(context):
    x = torch.randn(21, 3, generator=torch.Generator().manual_seed(partition(context)))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


def trainer(context):
    return {"accelerator": "cpu", "devices": 2 - partition(context)}


client = client_app(Lit, data, trainer, num_threads=1, keep_local=False)
server = ServerApp()


@server.main()
def main(grid, context):
    strategy = ExactFedAvg(fraction_evaluate=0.0, min_available_nodes=2)
    result = FederatedTrainer(max_rounds=1, strategy=strategy, seed=7).fit(Lit(), grid)
    told = {
        "digest": result.digest,
        "rounds": [[record.accepted, record.metrics["loss"]] for record in result.rounds],
    }
    Path(context.run_config["run-dir"], "outcome.json").write_text(json.dumps(told))
