"""Clients whose optimizers and schedules outlive the round, beside clients that begin anew in each.

Run it with ``python examples/optimizer_that_stays.py``; it takes some ten seconds. Five clients train on
handwritten digits with Adam, whose rate warms up over three epochs and decays over the run. Every message
gets a new Trainer, as in Flower's deployment it gets a new process. So without ``keep_optimizer`` each round
begins with the first epoch of the warm-up, and with the moments of Adam at zero. With it a client goes on
where it was.

Expected output (the digits may differ on other hardware or torch builds):

    round   kept    anew
        0  0.0422  0.0422
        1  0.1667  0.1667
        2  0.4400  0.2111
        3  0.5533  0.3089
        4  0.6733  0.3889
        5  0.7067  0.4556
        6  0.7644  0.4889
        7  0.8111  0.5267
        8  0.8156  0.5733
        9  0.8311  0.6133
       10  0.8244  0.6311
"""

import logging
import tempfile

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, client_app, dirichlet_split, run_local, server_app

CLIENTS, ROUNDS, WARM_UP = 5, 10, 3

images, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
shares = dirichlet_split(labels[450:], CLIENTS, alpha=0.5, seed=0)


class LitDigits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        warm_up = LinearLR(optimizer, start_factor=0.1, total_iters=WARM_UP)
        decay = CosineAnnealingLR(optimizer, T_max=ROUNDS - WARM_UP)
        return [optimizer], [SequentialLR(optimizer, [warm_up, decay], milestones=[WARM_UP])]


def data(context):
    share = 450 + shares[int(context.node_config["partition-id"])]
    return DataLoader(Subset(digits, share.tolist()), batch_size=16, shuffle=True)


def evaluate(model):
    x, y = digits[:450]
    return {"accuracy": (model.net(x).argmax(1) == y).float().mean().item()}


def accuracies(keep_optimizer):
    client = client_app(LitDigits, data, {"accelerator": "cpu"}, keep_optimizer=keep_optimizer)
    trainer = FederatedTrainer(
        max_rounds=ROUNDS, strategy=ExactFedAvg(fraction_evaluate=0.0), seed=7, enable_progress_bar=False
    )
    run_local(server_app(LitDigits, trainer, evaluate=evaluate), client, CLIENTS)
    return [record.metrics["server_accuracy"] for record in trainer.rounds]


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    with tempfile.TemporaryDirectory(prefix="optimizer-that-stays-") as folder:
        kept, anew = accuracies(folder), accuracies(False)
    print("round   kept    anew")
    for number, (one, other) in enumerate(zip(kept, anew, strict=True)):
        print(f"{number:5d} {one:7.4f} {other:7.4f}")


if __name__ == "__main__":
    main()
