"""torchao: a base that is quantized and stays at home, and a head that travels."""

import time

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from ecosystem._harness import CPU, CheckFailed, Site, check, print_row, quiet
from lightning_fl_ext import FederatedTrainer, LocalGrid, WeightExchange, client_app

MODULE = "quantize_(Int8WeightOnlyConfig)"


class Quantized(L.LightningModule):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)  # stands for pretrained weights
            self.base = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU()).requires_grad_(False)
        quantize_(self.base, Int8WeightOnlyConfig())
        self.head = torch.nn.Linear(64, 3)

    def training_step(self, batch, _):
        return F.cross_entropy(self.head(self.base(batch[0])), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", F.cross_entropy(self.head(self.base(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.head.parameters(), 1e-2)


def rows(size):
    return DataLoader(TensorDataset(torch.randn(size, 32), torch.randint(3, (size,))), batch_size=6)


def data(context):
    site = context.node_config["partition-id"]
    return Site(rows((26, 17, 11)[site]), rows(5 + site))


def check_refusal():
    start = time.perf_counter()
    try:
        FederatedTrainer(enable_progress_bar=False).fit(
            Quantized, LocalGrid(client_app(Quantized, data, CPU), 3)
        )
    except TypeError as error:
        if "`base.0.weight` cannot travel" in str(error) and "`exclude`" in str(error):
            because = "not, because quantized tensors have no mean: refused by name"
            return print_row("torchao", MODULE, because, time.perf_counter() - start)
        raise
    raise CheckFailed("quantized tensors were not refused")


if __name__ == "__main__":
    quiet()
    check_refusal()
    exchange = WeightExchange(include="head.*")
    client = client_app(Quantized, data, CPU, exchange=exchange)
    outcome = 'with `exchange=WeightExchange(include="head.*")`'
    options = {"evaluated": (5, 6, 7), "exchange": exchange, "outcome": outcome}
    check("torchao", MODULE, Quantized, client, (26, 17, 11), **options)
