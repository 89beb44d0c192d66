"""A module and data for fits over two processes, plain and in shards."""

import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Line(L.LightningModule):
    """A linear layer whose target is the sum of its inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def loss(self, batch):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        # Reduced over the ranks only when it is read: a read on one rank alone would wait for ever.
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class InShards:
    """Mixed in before a module: its layer is built late, and fully sharded (FSDP2) over all processes."""

    def __init__(self):
        super().__init__()
        self.layer = None

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard  # half a second

        if self.layer is None:
            self.layer = nn.Linear(3, 1)
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


class LateNet(Line):
    """Two layers that are built late, as the mesh has it: tensor parallel, FSDP2, both or neither."""

    def __init__(self):
        super().__init__()
        self.layer = None

    def configure_model(self):
        if self.layer is not None:
            return
        self.layer = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1, bias=False))
        if (mesh := self.device_mesh) is None:
            return
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        if mesh["tensor_parallel"].size() > 1:
            plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
            parallelize_module(self.layer, mesh["tensor_parallel"], plan)
        if mesh["data_parallel"].size() > 1:
            fully_shard(self.layer, mesh=mesh["data_parallel"])


def rows(n, seed=1):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def loader(n, batch_size=10):
    return DataLoader(rows(n), batch_size=batch_size)
