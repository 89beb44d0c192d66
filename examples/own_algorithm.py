"""An algorithm of one's own, both halves: FedCM, where clients share the server's momentum.

Run it with ``python examples/own_algorithm.py``; it takes some twenty seconds. In FedCM (Xu et al. 2021,
arXiv:2106.10874) a client's step is ``alpha * gradient + (1 - alpha) * delta``, where ``delta`` is the mean
step of the round before, which the server sends along. The client hands in how long its path was, the sum of
its learning rates; everything else (messages, screening, the exact sum, checkpoints) is seen to.

Expected output (the digits may differ on other hardware or torch builds):

    round  FedAvg   FedCM
        0  0.0422  0.0422
        1  0.3089  0.3089
        2  0.3444  0.5533
        3  0.5578  0.7378
        4  0.6111  0.7533
        5  0.7356  0.8289
        6  0.8133  0.8533
        7  0.8378  0.8733
        8  0.8711  0.8689
"""

import logging

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_fl_ext import (
    AlgorithmStrategy,
    ClientAlgorithm,
    ExactFedAvg,
    FederatedTrainer,
    client_app,
    dirichlet_split,
    run_local,
    server_app,
)

CLIENTS, ROUNDS = 10, 8

images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
shares = dirichlet_split(labels[450:], CLIENTS, alpha=0.3, seed=0)


class ClientMomentum(ClientAlgorithm):
    name = "fedcm"
    hands_in_last = True

    def on_fit_start(self, fit):
        self.alpha, self.path = float(self.settings["alpha"]), 0.0
        self.delta = {name: delta.to(fit.parameters[name].device) for name, delta in fit.received.items()}

    def before_step(self, fit, parameters, optimizer):
        for name, parameter in parameters.items():
            parameter.grad.mul_(self.alpha).add_(self.delta[name], alpha=1 - self.alpha)
        self.path += optimizer.param_groups[0]["lr"]

    def on_fit_end(self, fit):
        return {"path": torch.tensor(self.path)}


class FedCM(AlgorithmStrategy):
    algorithm = "fedcm"

    def __init__(self, alpha, **options):
        super().__init__(**options)
        self.alpha = alpha

    def settings(self, server_round):
        return {"alpha": self.alpha if self.kept else 1.0}  # there is no step before the first

    def extras(self, arrays):
        return {name: self.kept.get(name, np.zeros_like(arrays[name])) for name in self.trained(arrays)}

    def expected(self, arrays):
        return {"path": np.zeros((), np.float32)}

    def combine(self, before, mean, extras, share):
        return mean, {name: (before[name] - mean[name]) / extras["path"] for name in self.trained(before)}


class LitDigits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def data(context):
    share = 450 + shares[int(context.node_config["partition-id"])]
    return DataLoader(Subset(digits, share.tolist()), batch_size=16, shuffle=True)


def evaluate(model):
    x, y = digits[:450]
    return {"accuracy": (model.net(x).argmax(1) == y).float().mean().item()}


def accuracies(strategy):
    trainer = FederatedTrainer(max_rounds=ROUNDS, strategy=strategy, seed=7, enable_progress_bar=False)
    client = client_app(LitDigits, data, {"accelerator": "cpu"}, algorithms=(ClientMomentum,))
    run_local(server_app(LitDigits, trainer, evaluate=evaluate), client, CLIENTS)
    return [record.metrics["server_accuracy"] for record in trainer.rounds]


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    plain = accuracies(ExactFedAvg(fraction_evaluate=0.0))
    own = accuracies(FedCM(alpha=0.3, fraction_evaluate=0.0))
    print("round  FedAvg   FedCM")
    for number, (one, other) in enumerate(zip(plain, own, strict=True)):
        print(f"{number:5d} {one:7.4f} {other:7.4f}")


if __name__ == "__main__":
    main()
