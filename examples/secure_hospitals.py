"""Five hospitals train together, one drops out in the middle, and the server sees no one's weights.

Run it with ``python examples/secure_hospitals.py``; it takes some fifteen seconds. The hospitals share out
scikit-learn's breast cancer data. In the second round one of them falls silent after the others have masked
their updates with keys of its own: they give the server what takes those masks off the sum, and the round
goes on without it. The plain run beside it, in which the server gets every update and the same hospital is
missing, ends with the same bytes.

Expected output (figures may differ on other hardware or torch builds):

    round  accuracy  in the sum                dropped out while masking
        1     0.909  Alpha Beta Gamma Delta Eps.
        2     0.926  Alpha Beta Gamma Eps.     Delta
        3     0.930  Alpha Beta Gamma Delta Eps.
        ...
        6     0.940  Alpha Beta Gamma Delta Eps.
    the same digest as the plain run: True
    bytes a hospital sends for a parameter: 8.0 masked, 4.5 plain
    correlation of what the server saw with the weights: 0.01
    picture: /tmp/secure-hospitals-.../what-the-server-saw.png
"""

import logging
import tempfile
from pathlib import Path

import lightning.pytorch as L
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    SecureFedAvg,
    client_app,
    run_local,
    server_app,
)
from lightning_fl_ext.wire import from_record

HOSPITALS, ROUNDS = ("Alpha", "Beta", "Gamma", "Delta", "Eps."), 6

features, labels = load_breast_cancer(return_X_y=True)
features = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
labels = torch.tensor(labels)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
test, shares = order[:285], order[285:].chunk(len(HOSPITALS))


class LitTumours(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def training_step(self, batch, _):
        loss = F.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def records(context):
    share = shares[int(context.node_config["partition-id"])]
    return DataLoader(TensorDataset(features[share], labels[share]), batch_size=8, shuffle=True)


def accuracy(model):
    return {"accuracy": (model.layers(features[test]).argmax(1) == labels[test]).float().mean().item()}


class Wire:
    """What goes over the wire: one hospital is cut off once, and one message is kept to look at."""

    def __init__(self, step):
        self.step = step
        self.seen = None

    def __call__(self, instruction, reply):
        step = instruction.metadata.message_type
        if "secure" in instruction.content:
            step = instruction.content["secure"]["step"]
        if step != self.step or "client" not in reply.content:
            return reply
        client, number = (reply.content["client"][key] for key in ("client-id", "server-round"))
        if (client, number) == ("0", 1):
            record = reply.content["masked" if step == "mask" else "arrays"]
            self.seen = {name: array.copy() for name, array in from_record(record).items()}
        return None if (HOSPITALS[int(client)], number) == ("Delta", 2) else reply


def run(strategy, wire, **options):
    clients = client_app(LitTumours, records, num_threads=1, **options)
    trainer = FederatedTrainer(ROUNDS, strategy, seed=1, enable_progress_bar=False)
    run_local(server_app(LitTumours, trainer, evaluate=accuracy), clients, len(HOSPITALS), faults=wire)
    return trainer.result


def plot(weights, masked):
    order = np.argsort(weights, axis=None)  # sorted, the weights have a pattern that would show through
    weights, masked = (values.ravel()[order].reshape(values.shape) for values in (weights, masked))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    axes[0].imshow(weights, cmap="RdBu", vmin=-0.2, vmax=0.2)
    axes[0].set_title("the weights of hospital Alpha, sorted")
    axes[1].imshow(masked, cmap="RdBu", vmin=-(2.0**63), vmax=2.0**63)
    axes[1].set_title("what the server saw of them, in the same order")
    for axis in axes:
        axis.set_axis_off()
    path = Path(tempfile.mkdtemp(prefix="secure-hospitals-")) / "what-the-server-saw.png"
    figure.savefig(path, dpi=120)
    return path


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    logging.getLogger("lightning_fl_ext").setLevel(logging.ERROR)
    masked, plain = Wire("mask"), Wire("train")
    secure = run(SecureFedAvg(), masked, secure="required")
    exact = run(ExactFedAvg(fraction_evaluate=0.0), plain)

    print(f"{'round':5}{'accuracy':>10}  {'in the sum':26}dropped out while masking")
    for record in secure.rounds[1:]:
        names, gone = (
            " ".join(HOSPITALS[int(client)] for client in clients)
            for clients in (record.accepted, [r.client_id for r in record.rejected])
        )
        row = f"{record.server_round:5}{record.metrics['server_accuracy']:10.3f}  {names:26}{gone}"
        print(row.rstrip())
    print(f"the same digest as the plain run: {secure.digest == exact.digest}")
    parameters = sum(array.size for array in plain.seen.values())
    sent = [masked.seen["masked"].nbytes, sum(array.nbytes + 128 for array in plain.seen.values())]
    up, down = (size / parameters for size in sent)
    print(f"bytes a hospital sends for a parameter: {up:.1f} masked, {down:.1f} plain")

    # The vector holds the arrays in the order of their names: first this layer's bias, then its weight.
    weights = plain.seen["layers.0.weight"]
    start = plain.seen["layers.0.bias"].size
    words = masked.seen["masked"][start : start + weights.size].view(np.int64).reshape(weights.shape)
    correlation = np.corrcoef(weights.ravel(), words.ravel().astype(float))[0, 1]
    print(f"correlation of what the server saw with the weights: {correlation:.2f}")
    print(f"picture: {plot(weights, words.astype(float))}")


if __name__ == "__main__":
    main()
