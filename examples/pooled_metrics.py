"""Ten clients with different digits: the F1 and AUROC of all of them, merged exactly and averaged as usual.

Run it with ``python examples/pooled_metrics.py``; it takes some fifteen seconds. The module logs its metrics
as any LightningModule does, and nothing else is needed: after each round every client validates the new model
on its own digits, and the server merges the states of the clients' metrics. To compare, "pooled" is
computed here from all clients' validation digits at once, which no real server has, and "averaged" is the
mean of the clients' values weighted by their examples, which is what Flower reports.

Expected output (figures may differ on other hardware or torch builds):

                F1                            AUROC
    round       pooled  merged  averaged      pooled  merged  averaged
        1       0.0810  0.0810  0.0656        0.6063  0.6063  0.4287
        2       0.1342  0.1342  0.1130        0.7560  0.7560  0.5349
        ...
        8       0.6129  0.6129  0.5117        0.9484  0.9484  0.6804
    merged differs from pooled by at most 0e+00
    averaged differs from pooled by up to 0.268
    plot: /tmp/pooled-metrics-.../pooled_metrics.png
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as L
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import MetricRecord
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score
from torchmetrics.functional.classification import multiclass_auroc, multiclass_f1_score

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    client_app,
    dirichlet_split,
    run_local,
    server_app,
)

CLIENTS, CLASSES, ROUNDS, THRESHOLDS = 10, 10, 8, 200

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
shares = [torch.tensor(share) for share in dirichlet_split(labels.numpy(), CLIENTS, alpha=0.3, seed=4)]


class LitDigits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        self.f1 = MulticlassF1Score(CLASSES)
        # With thresholds AUROC keeps counts instead of every example's scores, so that it may leave a client.
        self.auroc = MulticlassAUROC(CLASSES, thresholds=THRESHOLDS)

    def forward(self, x):
        return self.layers(x).softmax(-1)

    def training_step(self, batch, _):
        return F.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch, _):
        scores = self(batch[0])
        self.f1(scores, batch[1])
        self.auroc(scores, batch[1])
        self.log("val_f1", self.f1)
        self.log("val_auroc", self.auroc)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Digits(L.LightningDataModule):
    """A client's digits: every third is for validation."""

    def __init__(self, context):
        super().__init__()
        self.share = shares[int(context.node_config["partition-id"])]

    def train_dataloader(self):
        indices = self.share[torch.arange(len(self.share)) % 3 > 0]
        return DataLoader(TensorDataset(images[indices], labels[indices]), batch_size=16, shuffle=True)

    def val_dataloader(self):
        indices = self.share[::3]
        return DataLoader(TensorDataset(images[indices], labels[indices]), batch_size=64)


def pooled(model):
    """What a server would see that had the validation digits of all clients."""
    indices = torch.cat([share[::3] for share in shares])
    scores = model(images[indices])
    return {
        "f1": multiclass_f1_score(scores, labels[indices], CLASSES).item(),
        "auroc": multiclass_auroc(scores, labels[indices], CLASSES, thresholds=THRESHOLDS).item(),
    }


def averaged(replies, weighted_by_key):
    """Flower's own mean of the clients' values, kept under names of its own."""
    means = aggregate_metricrecords(replies, weighted_by_key)
    return MetricRecord({f"averaged_{name}": value for name, value in means.items()})


def plot(rounds):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True, layout="constrained")
    x = [record.server_round for record in rounds]
    for axis, name, title in zip(axes, ("f1", "auroc"), ("macro-F1", "AUROC"), strict=True):
        for key, style in {
            f"server_{name}": {"color": "0.75", "linewidth": 6, "label": "pooled"},
            f"val_{name}": {"color": "tab:blue", "label": "merged states"},
            f"averaged_val_{name}": {
                "color": "tab:red",
                "linestyle": "--",
                "label": "mean of clients' values",
            },
        }.items():
            axis.plot(x, [record.metrics[key] for record in rounds], **style)
        axis.set(title=title, xlabel="round", ylim=(0, 1.02))
    axes[0].legend()
    path = Path(tempfile.mkdtemp(prefix="pooled-metrics-")) / "pooled_metrics.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="No (positive|negative) samples")  # clients lack classes
    torch.set_num_threads(1)  # the net is tiny
    trainer = FederatedTrainer(
        max_rounds=ROUNDS,
        strategy=ExactFedAvg(evaluate_metrics_aggr_fn=averaged),
        seed=7,
        enable_progress_bar=False,
    )
    # Clients validate when asked to evaluate; their fits of one epoch do not.
    local = {"max_epochs": 1, "check_val_every_n_epoch": 2, "accelerator": "cpu"}
    client = client_app(LitDigits, Digits, local)
    run_local(server_app(LitDigits, trainer, evaluate=pooled), client, num_clients=CLIENTS)

    print("            F1                            AUROC")
    print("round       pooled  merged  averaged      pooled  merged  averaged")
    table = []
    for record in trainer.rounds[1:]:
        kinds = ("server", "val", "averaged_val")
        rows = [[record.metrics[f"{kind}_{name}"] for kind in kinds] for name in ("f1", "auroc")]
        f1, auroc = ("  ".join(f"{value:.4f}" for value in row) for row in rows)
        print(f"{record.server_round:5}       {f1}        {auroc}")
        table.append(rows)
    server, merged, mean = np.moveaxis(np.array(table), 2, 0)
    print(f"merged differs from pooled by at most {np.abs(merged - server).max():.0e}")
    print(f"averaged differs from pooled by up to {np.abs(mean - server).max():.3f}")
    print(f"plot: {plot(trainer.rounds[1:])}")


if __name__ == "__main__":
    main()
