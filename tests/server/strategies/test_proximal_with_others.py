"""FedProx's term is the clients' alone, so it goes with what the server makes of their updates."""

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import CoordinateMedian, ExactFedAdam, LocalGrid, RobustFedAvg, client_app


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, _):
        return (self.net(batch[0]) - 3).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def data(context):
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    return DataLoader(TensorDataset(torch.randn(12, 4, generator=generator)), batch_size=4)


@pytest.mark.parametrize(
    "make", [ExactFedAdam, lambda **options: RobustFedAvg(CoordinateMedian(), **options)]
)
def test_a_pull_towards_the_global_weights_shortens_the_way(toy, make):
    def way(mu):
        strategy = make(fraction_evaluate=0.0, min_evaluate_nodes=0)
        trainer = toy.make_trainer(strategy, max_rounds=1, train_config={"proximal-mu": mu})
        weights = {}

        def evaluate(model):
            weights[len(weights)] = model.net.bias.item()
            return {}

        trainer.fit(Lit, LocalGrid(client_app(Lit, data, {"accelerator": "cpu"}), 3), evaluate=evaluate)
        return abs(weights[1] - weights[0])

    assert way(15.0) < 0.99 * way(0.0)
