"""torch_geometric: a graph network in a LightningModule of one's own, on its own data module."""

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningDataset
from torch_geometric.nn import GIN, global_mean_pool

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = GIN(in_channels=4, hidden_channels=8, num_layers=2, out_channels=3, norm="batch_norm")

    def loss(self, graphs):
        nodes = self.net(graphs.x, graphs.edge_index)
        return F.cross_entropy(global_mean_pool(nodes, graphs.batch), graphs.y)

    def training_step(self, graphs, _):
        return self.loss(graphs)

    def validation_step(self, graphs, _):
        self.log("val_loss", self.loss(graphs), batch_size=graphs.num_graphs)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def graph():
    nodes = int(torch.randint(3, 9, ()))
    edges = torch.randint(nodes, (2, 2 * nodes))
    return Data(x=torch.randn(nodes, 4), edge_index=edges, y=torch.randint(3, (1,)))


def data(context):
    site = context.node_config["partition-id"]
    train, validation = ([graph() for _ in range(size)] for size in ((21, 14, 10)[site], 6 + site))
    return LightningDataset(train, validation, batch_size=4)


if __name__ == "__main__":
    quiet()
    check("torch_geometric", "GIN", Net, client_app(Net, data, CPU), (21, 14, 10), evaluated=(6, 7, 8))
