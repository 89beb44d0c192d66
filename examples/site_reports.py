"""Four hospitals, one with another scanner: the model at each of them, over seeds, and as a file.

Run it with ``python examples/site_reports.py``; it takes some twenty seconds. Hospital 3 measures the cells
of a biopsy in other units. A model that is shared whole fails there, and suffers at the others. With the
normalization kept at each hospital (FedBN) it does well at all. Each way runs with three seeds, and every run
leaves a ledger, of which the rows and the pages are made.

Expected output (figures may differ on other hardware or torch builds):

    shared  last seed, by hospital   0: 0.812  1: 0.750  2: 0.771  3: 0.333
    shared  val_accuracy             0.677 ± 0.014 over seeds
    shared  val_accuracy/worst       0.333 ± 0.000 over seeds
    shared  model.ckpt               a model of width 16
    fedbn   last seed, by hospital   0: 1.000  1: 0.896  2: 0.958  3: 0.938
    fedbn   val_accuracy             0.950 ± 0.008 over seeds
    fedbn   val_accuracy/worst       0.896 ± 0.021 over seeds
    all runs: /tmp/site-reports-.../runs.html
    one run, site by site: /tmp/site-reports-.../sites.html
"""

import logging
import statistics
import tempfile
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAccuracy

from lightning_fl_ext import (
    FederatedTrainer,
    RoundLedger,
    WeightExchange,
    client_app,
    export_model,
    run_local,
    server_app,
)
from lightning_fl_ext.report import read_history, read_runs, render_report, render_runs

HOSPITALS, ROUNDS, SEEDS = 4, 8, (0, 1, 2)

cells, benign = load_breast_cancer(return_X_y=True)
cells, benign = torch.tensor(scale(cells), dtype=torch.float32), torch.tensor(benign)


class LitCells(L.LightningModule):
    def __init__(self, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.norm = nn.BatchNorm1d(30)
        self.layers = nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 1))
        self.accuracy = BinaryAccuracy()

    def forward(self, x):
        return self.layers(self.norm(x)).squeeze(1)

    def training_step(self, batch, _):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch, _):
        self.accuracy(self(batch[0]), batch[1])
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Biopsies(L.LightningDataModule):
    """A hospital's biopsies: every third is for validation."""

    def __init__(self, context):
        super().__init__()
        hospital = int(context.node_config["partition-id"])
        x, y = cells[hospital::HOSPITALS], benign[hospital::HOSPITALS]
        self.x, self.y = (2 * x + 3 if hospital == 3 else x), y

    def train_dataloader(self):
        rows = torch.arange(len(self.x)) % 3 > 0
        return DataLoader(TensorDataset(self.x[rows], self.y[rows]), 16, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x[::3], self.y[::3]), 64)


def federate(folder, seed, exchange):
    trainer = FederatedTrainer(
        ROUNDS,
        seed=seed,
        exchange=exchange,
        site_metrics={"val_accuracy": "max"},
        callbacks=[RoundLedger()],
        default_root_dir=folder,
        enable_progress_bar=False,
    )
    local = {"accelerator": "cpu", "check_val_every_n_epoch": 2}
    client = client_app(
        LitCells, Biopsies, local, exchange=exchange, keep_local=folder / "states", num_threads=1
    )
    run_local(server_app(LitCells, trainer), client, num_clients=HOSPITALS)
    return trainer.result


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    root = Path(tempfile.mkdtemp(prefix="site-reports-"))
    ways = {"shared": WeightExchange(), "fedbn": WeightExchange(exclude="norm.*")}
    for way, exchange in ways.items():
        for seed in SEEDS:
            result = federate(root / way / f"seed-{seed}", seed, exchange)
        sites = result.rounds[-1].sites
        values = "  ".join(f"{site}: {told.metrics['val_accuracy']:.3f}" for site, told in sites.items())
        print(f"{way:7} last seed, by hospital   {values}")
        last = [row for row in read_runs(root / way) if row["round"] == ROUNDS]
        for name in ("val_accuracy", "val_accuracy/worst"):
            numbers = [row[name] for row in last]
            spread = statistics.stdev(numbers)
            print(f"{way:7} {name:24} {statistics.mean(numbers):.3f} ± {spread:.3f} over seeds")
        if way == "shared":
            export_model(result.model, root / "model.ckpt")
            again = LitCells.load_from_checkpoint(root / "model.ckpt", weights_only=True)
            print(f"shared  model.ckpt               a model of width {again.hparams['width']}")
    runs = [read_history(root / way / f"seed-{seed}") for way in ways for seed in SEEDS]
    (root / "runs.html").write_text(render_runs(runs), encoding="utf-8")
    (root / "sites.html").write_text(render_report(runs[0]), encoding="utf-8")
    print(f"all runs: {root / 'runs.html'}")
    print(f"one run, site by site: {root / 'sites.html'}")


if __name__ == "__main__":
    main()
