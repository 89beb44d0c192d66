"""Ten clients with different digits: the F1 and AUROC of all of them, merged exactly and averaged as usual.

Run it with ``python examples/pooled_metrics.py``; it takes some ten seconds. Each round the clients train a
classifier on their own digits, the server averages the weights, and every client validates the new model on
its own validation digits. The server never sees these; it gets the states of the clients' metrics, merges
them, and computes. "pooled" is computed here from all validation digits at once, to compare.

Expected output (figures may differ on other hardware or torch builds; merged always equals pooled):

                F1                            AUROC
    round       pooled  merged  averaged      pooled  merged  averaged
        1       0.0532  0.0532  0.0565        0.6728  0.6728  0.5337
        2       0.2194  0.2194  0.1904        0.8328  0.8328  0.6498
        ...
       10       0.7889  0.7889  0.6626        0.9775  0.9775  0.7332
    merged equals pooled to the last bit: True
    averaged is off by up to 0.244
    plot: /tmp/pooled-metrics-.../pooled_metrics.png
"""

import copy
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

from lightning_fl_ext.metrics import MetricPack, merge_metrics, pack_metrics

CLIENTS, CLASSES, ROUNDS = 10, 10, 10


class Model(nn.Module):
    """A classifier with the metrics that a LightningModule would have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        # With thresholds AUROC keeps counts instead of every example's score, which may leave a client.
        metrics = [MulticlassF1Score(CLASSES), MulticlassAUROC(CLASSES, thresholds=200)]
        self.val_metrics = MetricCollection(metrics)

    def fit(self, images: Tensor, labels: Tensor) -> None:
        optimiser = torch.optim.SGD(self.layers.parameters(), lr=0.2)
        for _ in range(5):
            optimiser.zero_grad()
            F.cross_entropy(self.layers(images), labels).backward()
            optimiser.step()

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> None:
        self.val_metrics.reset()
        self.val_metrics.update(self.layers(images).softmax(-1), labels)


def label_skewed_clients() -> list[tuple[Tensor, Tensor]]:
    """Digits of each client: every class is shared out by a draw from a Dirichlet(0.3) distribution."""
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    rng = np.random.default_rng(4)
    parts: list[list[Tensor]] = [[] for _ in range(CLIENTS)]
    for label in range(CLASSES):
        indices = (labels == label).nonzero().flatten()
        ends = np.cumsum(rng.dirichlet([0.3] * CLIENTS))[:-1] * len(indices)
        for part, piece in zip(parts, indices.tensor_split(ends.astype(int).tolist()), strict=True):
            part.append(piece)
    order = [torch.cat(part)[torch.randperm(sum(map(len, part)))] for part in parts]
    return [(images[part].float() / 16, labels[part]) for part in order]


def run_round(model: Model, clients: list[tuple[Tensor, Tensor]]) -> None:
    """Train on the first two thirds of each client's digits, and average the weights into `model`."""
    trained, sizes = [], []
    for images, labels in clients:
        local, size = copy.deepcopy(model), 2 * len(labels) // 3
        local.fit(images[:size], labels[:size])
        trained.append(local.state_dict())
        sizes.append(size)
    mean = {
        key: sum(size * state[key] for size, state in zip(sizes, trained, strict=True)) / sum(sizes)
        for key in trained[0]
    }
    model.load_state_dict(mean)


def values_of(model: Model) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of classes that a client lacks
        values = model.val_metrics.compute()
    return np.array([float(values["MulticlassF1Score"]), float(values["MulticlassAUROC"])])


def validate_round(model: Model, clients: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """F1 and AUROC (columns): pooled, merged and averaged (rows)."""
    messages, averaged, total = [], np.zeros(2), 0
    validation = [tuple(part[2 * len(part) // 3 :] for part in client) for client in clients]
    for client, (images, labels) in enumerate(validation):
        local = copy.deepcopy(model)
        local.validate(images, labels)
        pack = pack_metrics(local, client_id=str(client), num_examples=len(labels))
        messages.append(pack.to_arrays())  # arrays and a JSON text: this is what travels
        averaged += len(labels) * values_of(local)
        total += len(labels)

    server = merge_metrics(copy.deepcopy(model), [MetricPack.from_arrays(*message) for message in messages])

    pooled = copy.deepcopy(model)
    pooled.validate(*(torch.cat(parts) for parts in zip(*validation, strict=True)))
    return np.array([values_of(pooled), values_of(server), averaged / total])


def plot(history: np.ndarray) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True, layout="constrained")
    rounds = np.arange(1, len(history) + 1)
    for axis, name, values in zip(axes, ("macro-F1", "AUROC"), history.transpose(2, 1, 0), strict=True):
        axis.plot(rounds, values[0], color="0.75", linewidth=6, label="pooled")
        axis.plot(rounds, values[1], color="tab:blue", label="merged states")
        axis.plot(rounds, values[2], color="tab:red", linestyle="--", label="mean of clients' values")
        axis.set(title=name, xlabel="round", ylim=(0, 1.02))
    axes[0].legend()
    path = Path(tempfile.mkdtemp(prefix="pooled-metrics-")) / "pooled_metrics.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clients = label_skewed_clients()
    model = Model()
    print("            F1                            AUROC")
    print("round       pooled  merged  averaged      pooled  merged  averaged")
    history = []
    for number in range(1, ROUNDS + 1):
        run_round(model, clients)
        values = validate_round(model, clients)
        f1, auroc = ("  ".join(f"{value:.4f}" for value in column) for column in values.T)
        print(f"{number:5}       {f1}        {auroc}")
        history.append(values)
    pooled, merged, averaged = np.array(history).transpose(1, 0, 2)
    print(f"merged equals pooled to the last bit: {np.array_equal(merged, pooled)}")
    print(f"averaged is off by up to {np.abs(averaged - pooled).max():.3f}")
    print(f"plot: {plot(np.array(history))}")


if __name__ == "__main__":
    main()
