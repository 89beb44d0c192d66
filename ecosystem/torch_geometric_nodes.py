"""torch_geometric: one large graph a site, whose training nodes are the examples. No batch tells how many."""

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningNodeData
from torch_geometric.nn import GCN

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = GCN(in_channels=4, hidden_channels=8, num_layers=2, out_channels=3)

    def loss(self, graph, mask):
        return F.cross_entropy(self.net(graph.x, graph.edge_index)[mask], graph.y[mask])

    def training_step(self, graph, _):
        loss = self.loss(graph, graph.train_mask)
        self.log("train_loss", loss, batch_size=int(graph.train_mask.sum()))
        return loss

    def validation_step(self, graph, _):
        self.log("val_loss", self.loss(graph, graph.val_mask), batch_size=int(graph.val_mask.sum()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def data(context):
    site = context.node_config["partition-id"]
    train, nodes = (21, 14, 10)[site], torch.arange(40)
    graph = Data(x=torch.randn(40, 4), edge_index=torch.randint(40, (2, 90)), y=torch.randint(3, (40,)))
    graph.train_mask, graph.val_mask = nodes < train, nodes >= 34 - site
    return LightningNodeData(graph, loader="full")


if __name__ == "__main__":
    quiet()
    options = {"evaluated": (6, 7, 8), "outcome": "with `self.log(..., batch_size=)`"}
    check(
        "torch_geometric", "GCN, LightningNodeData", Net, client_app(Net, data, CPU), (21, 14, 10), **options
    )
