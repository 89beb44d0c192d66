"""opacus: DP-SGD inside `client_app`. Batches are drawn by chance, so the counts are what was drawn."""

import math

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from opacus.accountants import RDPAccountant
from torch.utils.data import DataLoader, TensorDataset

from ecosystem._harness import CPU, ROUNDS, CheckFailed, check, quiet
from ecosystem._privacy import Privacy, private_loader
from lightning_fl_ext import client_app

SIZES, BATCH, NOISE, DELTA = (26, 17, 12), 2, 1.1, 1e-3
SEEN, EMPTY = [], []  # client and number of examples of each fit, and whether it drew a batch of none


class Net(L.LightningModule):
    def __init__(self, site=None):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self.privacy = Privacy(
            NOISE, max_grad_norm=1.0, delta=DELTA, secret=False
        )  # else no two runs are alike
        self.site, self.drawn = site, []

    def training_step(self, batch, _):
        examples, labels = batch
        self.drawn.append(len(labels))
        return F.cross_entropy(self.net(examples), labels)

    def on_train_epoch_end(self):
        self.log("epsilon", self.privacy.epsilon(), reduce_fx="max")  # the largest of the clients
        SEEN.append((str(self.site), sum(self.drawn)))
        EMPTY.append(0 in self.drawn)

    def configure_optimizers(self):
        return self.privacy.optimizer(self, torch.optim.SGD(self.parameters(), 0.1))


def model(context):
    return Net(context.node_config["partition-id"])


def data(context):
    size = SIZES[context.node_config["partition-id"]]
    examples = TensorDataset(torch.randn(size, 4), torch.randint(3, (size,)))
    return private_loader(DataLoader(examples, batch_size=BATCH), secret=False)


def spent(size):
    """By an accountant of all rounds, beside the one that went from message to message."""
    accountant, steps = RDPAccountant(), -(-size // BATCH)
    for _ in range(ROUNDS * steps):
        accountant.step(noise_multiplier=NOISE, sample_rate=1 / steps)
    return accountant.get_epsilon(DELTA)


if __name__ == "__main__":
    quiet()
    outcome = "with a part of the module that keeps the accountant"
    metrics = check(
        "opacus", "PrivacyEngine", Net, client_app(model, data, CPU), lambda: SEEN, outcome=outcome
    )
    expected = max(spent(size) for size in SIZES)
    if not math.isclose(metrics["epsilon"], expected, rel_tol=1e-6):
        raise CheckFailed(f"expected the privacy spent to be {expected}. Got {metrics['epsilon']}")
    if not any(EMPTY):
        raise CheckFailed("no batch was empty: choose another seed")
