"""What is learned, and from which data."""

from functools import cache

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_fl_ext import MaskedModule, MaskExchange, StochasticGateModule, WeightExchange, dirichlet_split


class LitDigits(L.LightningModule):
    """A classifier with gates, for strategies that average weights."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        gate = StochasticGateModule(128, init_prob=0.9, estimator="identity")
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), gate, nn.Linear(128, 10))
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        logits = self.net(x)
        self.accuracy(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class LitMaskedDigits(LitDigits):
    """The same with random weights, of which it learns which to use, for FedPM."""

    def __init__(self, learning_rate: float) -> None:
        super().__init__(learning_rate)
        layers = nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 10, bias=False)
        self.net = MaskedModule(nn.Sequential(*layers), seed=0)


class Digits(L.LightningDataModule):
    """One client's share of the digits; a fifth of it is for validation."""

    def __init__(self, partition: int, num_partitions: int) -> None:
        super().__init__()
        images, labels = digits()
        share = dirichlet_split(labels, num_partitions, alpha=1.0, min_examples=20)[partition]
        examples = Subset(TensorDataset(images, labels), share.tolist())
        fixed = torch.Generator().manual_seed(partition)
        self.train_set, self.val_set = random_split(examples, [0.8, 0.2], generator=fixed)

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=256)


@cache
def digits():
    """Read the 1797 images, float32 of shape (1797, 64), and their labels, from scikit-learn's files."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def model(config):
    """Make the module that the run's strategy trains."""
    kind = LitMaskedDigits if config["strategy"] == "FedPM" else LitDigits
    return kind(config["learning-rate"])


def exchange(config):
    """Make what travels under the run's strategy: masks or weights. Server and clients must agree on it."""
    return MaskExchange() if config["strategy"] == "FedPM" else WeightExchange()
