"""opacus: DP-SGD inside `client_app`. Batches are drawn by chance, so the counts are what was drawn."""

import math
from functools import partial

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from flwr.app import Context
from opacus.accountants import RDPAccountant
from torch.utils.data import DataLoader, TensorDataset

from ecosystem._harness import CPU, ROUNDS, CheckFailed, check, quiet
from ecosystem._privacy import Privacy, private_loader
from lightning_fl_ext import client_app

SIZES, BATCH, NOISE, DELTA = (26, 17, 12), 2, 1.1, 1e-3
SEEN, EMPTY = [], []  # client and number of examples of each fit, and whether it drew a batch of none


class Net(L.LightningModule):
    def __init__(self, secret=True):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self.privacy = Privacy(NOISE, max_grad_norm=1.0, delta=DELTA, secret=secret)

    def training_step(self, batch, _):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_epoch_end(self):
        self.log("epsilon", self.privacy.epsilon(), reduce_fx="max")  # the largest of the clients

    def configure_optimizers(self):
        return self.privacy.optimizer(self, torch.optim.SGD(self.parameters(), 0.1))


def data(context, secret=True):
    size = SIZES[context.node_config["partition-id"]]
    examples = TensorDataset(torch.randn(size, 4), torch.randint(3, (size,)))
    return private_loader(DataLoader(examples, batch_size=BATCH), secret=secret)


class Watched(Net):
    """Notes what is drawn, and draws alike in every run, so that runs can be compared."""

    def __init__(self, context: Context | None = None):
        super().__init__(secret=False)
        self.site, self.drawn = context and context.node_config["partition-id"], []

    def training_step(self, batch, _):
        self.drawn.append(len(batch[0]))
        return super().training_step(batch, _)

    def on_train_end(self):
        SEEN.append((str(self.site), sum(self.drawn)))
        EMPTY.append(0 in self.drawn)


def spent(size):
    """By an accountant of all rounds, beside the one that went from message to message."""
    accountant, steps = RDPAccountant(), -(-size // BATCH)
    for _ in range(ROUNDS * steps):
        accountant.step(noise_multiplier=NOISE, sample_rate=1 / steps)
    return accountant.get_epsilon(DELTA)


if __name__ == "__main__":
    quiet()
    outcome = "with a part of the module that keeps the accountant"
    client = client_app(Watched, partial(data, secret=False), CPU)
    metrics = check("opacus", "PrivacyEngine", Watched, client, lambda: SEEN, outcome=outcome)
    expected = max(spent(size) for size in SIZES)
    if not math.isclose(metrics["epsilon"], expected, rel_tol=1e-6):
        raise CheckFailed(f"expected the privacy spent to be {expected}. Got {metrics['epsilon']}")
    if not any(EMPTY):
        raise CheckFailed("no batch was empty: choose another seed")
