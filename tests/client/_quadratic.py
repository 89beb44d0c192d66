"""Clients with quadratic losses of known optimum, and federated algorithms over them written out in numpy."""

from functools import partial

import lightning.pytorch as L
import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FederatedTrainer, FlowerBridge, LocalGrid, client_app

SIZES = 8, 12, 4, 16
"""Examples of each client: 2, 3, 1 and 4 steps an epoch."""

CLIENTS = 4
BATCH, EPOCHS, RATE = 4, 2, 0.1
CPU = {"accelerator": "cpu", "devices": 1}


def examples(client):
    """Curvatures and targets, of shape (examples, 3)."""
    rng = np.random.default_rng(client)
    shape = SIZES[client], 3
    return rng.uniform(0.5, 2, shape), rng.normal(size=shape) + client


class Quadratic(L.LightningModule):
    """Loss ``mean(a * (w - t)²) / 2`` over a batch, in double precision, in two parameters."""

    def __init__(self, momentum=0.0):
        super().__init__()
        self.head = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.tail = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("seen", torch.tensor(0.0))
        self.momentum = momentum

    def loss(self, batch):
        curvature, target = batch
        w = torch.cat([self.head, self.tail])
        return (curvature * (w - target) ** 2).sum(1).mean() / 2

    def training_step(self, batch, _):
        self.seen += 1
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), RATE, momentum=self.momentum)


def data(context):
    rows = TensorDataset(*map(torch.from_numpy, examples(int(context.node_config["partition-id"]))))
    return DataLoader(rows, batch_size=BATCH)


def app(model=Quadratic, trainer=None, **options):
    own = trainer if callable(trainer) else {**CPU, "max_epochs": EPOCHS, **(trainer or {})}
    return client_app(model, data, own, **options)


def handwritten(kit):
    """The client by hand, with the tests' own fixture of fits."""
    made = ClientApp()

    @made.train()
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context)
        kit.fit(bridge, module=Quadratic(), data=data(context), max_epochs=EPOCHS)
        return bridge.reply()

    return made


def run(strategy, client, rounds=3, *, clients=CLIENTS, model=Quadratic, evaluate=0.0, **options):
    """Federate; returns the trainer, whose `result` is the outcome."""
    strategy.fraction_evaluate = evaluate
    strategy.min_available_nodes = strategy.min_train_nodes = strategy.min_evaluate_nodes = 1
    fit, grid = options.pop("fit", {}), options.pop("grid", {})
    trainer = FederatedTrainer(rounds, strategy, seed=3, enable_progress_bar=False, **options)
    trainer.fit(model, LocalGrid(client, clients, **grid), **fit)
    return trainer


def weights(trainer):
    return np.concatenate([trainer.arrays["head"], trainer.arrays["tail"]])


# In numpy


def optimum(clients=(0, 1, 2, 3)):
    """Where the federation's loss, weighted by examples, is least."""
    both = [examples(i) for i in clients]
    return sum((a * t).sum(0) for a, t in both) / sum(a.sum(0) for a, _ in both)


def batches(client):
    a, t = examples(client)
    return [(a[i : i + BATCH], t[i : i + BATCH]) for i in range(0, len(a), BATCH)] * EPOCHS


def steps(client):
    return len(batches(client))


def local(client, start, change=lambda gradient, w: gradient, momentum=0.0):
    """Weights after plain SGD, or with heavy-ball momentum, whose gradients are changed."""
    w, heavy = start.copy(), np.zeros_like(start)
    for a, t in batches(client):
        heavy = momentum * heavy + change((a * (w - t)).mean(0), w)
        w = w - RATE * heavy
    return w


def mean(values):
    """The mean over clients, weighted by examples."""
    total = sum(SIZES[i] for i in values)
    return sum(SIZES[i] / total * np.asarray(value) for i, value in values.items())


def fedavg(rounds):
    w = np.zeros(3)
    for sampled in rounds:
        w = mean({i: local(i, w) for i in sampled})
    return w


def fedprox(rounds, mu):
    w = np.zeros(3)
    for sampled in rounds:
        w = mean({i: local(i, w, lambda g, v, near=w: g + mu * (v - near)) for i in sampled})
    return w


def scaffold(rounds, rate=1.0, clients=CLIENTS):
    """Algorithm 1 with option II, as it is printed but for the weights of clients."""
    x, c, own = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in range(clients)]
    for sampled in rounds:
        ends, changes = {}, {}
        for i in sampled:
            ends[i] = y = local(i, x, lambda g, _, i=i, c=c: g - own[i] + c)
            new = own[i] - c + (x - y) / (steps(i) * RATE)
            changes[i], own[i] = new - own[i], new
        x = x + rate * mean({i: y - x for i, y in ends.items()})
        c = c + len(sampled) / clients * mean(changes)
    return x


def fednova(rounds, momentum=0.0):
    def norm(tau):  # of a_i, section 4.1 of the paper
        return (tau - momentum * (1 - momentum**tau) / (1 - momentum)) / (1 - momentum)

    x = np.zeros(3)
    for sampled in rounds:
        per_step = {i: (x - local(i, x, momentum=momentum)) / norm(steps(i)) for i in sampled}
        x = x - mean({i: norm(steps(i)) for i in sampled}) * mean(per_step)
    return x


def feddyn(rounds, alpha, clients=CLIENTS):
    w, h, own = np.zeros(3), np.zeros(3), [np.zeros(3) for _ in range(clients)]
    for sampled in rounds:
        ends = {}
        for i in sampled:
            ends[i] = end = local(i, w, lambda g, v, i=i, near=w: g - own[i] + alpha * (v - near))
            own[i] = own[i] - alpha * (end - w)
        h = h - alpha * len(sampled) / clients * mean({i: end - w for i, end in ends.items()})
        w = mean(ends) - h / alpha
    return w


REFERENCES = {
    "fedprox": partial(fedprox, mu=0.3),
    "scaffold": scaffold,
    "fednova": fednova,
    "feddyn": partial(feddyn, alpha=0.2),
}
