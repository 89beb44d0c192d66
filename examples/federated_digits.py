"""Ten clients train a gated classifier of handwritten digits together; two of them misbehave.

Run it with ``make demo``, or ``python examples/federated_digits.py``. It ends with a table by round, a plot,
and the same digest twice: the second run lets the clients answer in another order.

Expected output (digests and figures may differ on other hardware or torch builds):

    round 0/8  server_loss 2.304  server_accuracy 0.09778  server_gates_open 0.9
    round 1/8  clients 10/10  server_loss 1.435  server_accuracy 0.6956  server_gates_open 0.8947
    ...
    round 4/8  clients 9/10  server_loss 0.2572  server_accuracy 0.9244  server_gates_open 0.8829
      left out client `3`, round 4: not-finite, `body.0.weight`: expected finite values, ...
    ...
    round 6/8  clients 9/10  server_loss 0.1953  server_accuracy 0.9311  server_gates_open 0.8662
      left out client `6`, round 6: no-reply: Node unavailable
    ...
    accuracy on held-out digits: 0.940
    ledger: 8 rounds, whole
    plot: ...
    report: .venv/bin/lightning-fl-ext show ...
    once more, with the clients answering in another order ...
    the same digest: True
"""

import logging
import os
import random
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord
from rich import print as print_rich
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    RoundCheckpoint,
    RoundLedger,
    RoundProgressBar,
    StochasticGateModule,
    client_app,
    dirichlet_split,
    run_local,
    server_app,
    verify_ledger,
)

CLIENTS, ROUNDS = 10, 8
SHOWN = ("server_loss", "server_accuracy", "server_gates_open")

images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=0.25, random_state=0)
train_set = TensorDataset(torch.tensor(train_x, dtype=torch.float32), torch.tensor(train_y))
test_set = TensorDataset(torch.tensor(test_x, dtype=torch.float32), torch.tensor(test_y))
shares = dirichlet_split(train_y, CLIENTS, alpha=0.5, seed=0, min_examples=20)


class LitDigits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.gate = StochasticGateModule(128, init_prob=0.9, estimator="identity")
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.gate(self.body(x)))

    def training_step(self, batch, _):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss + 2e-3 * self.gate.expected_open()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def data(context):
    share = shares[int(context.node_config["partition-id"])]
    return DataLoader(torch.utils.data.Subset(train_set, share.tolist()), batch_size=32, shuffle=True)


def evaluate(model):
    x, y = test_set.tensors
    logits = model(x)
    return {
        "loss": F.cross_entropy(logits, y).item(),
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "gates_open": model.gate.expected_open().item() / 128,
    }


def misbehave(instruction, reply):
    """In round 4 client 3 sends NaN; in round 6 client 6 vanishes."""
    if not reply.has_content() or "client" not in reply.content:
        return reply
    who, when = (reply.content["client"].get(key) for key in ("client-id", "server-round"))
    if (who, when) == ("6", 6):
        return None
    if (who, when) == ("3", 4):
        weights = reply.content["arrays"].to_torch_state_dict()
        weights["body.0.weight"][0, 0] = torch.nan
        reply.content["arrays"] = ArrayRecord(weights)
    return reply


def run(folder, *, arrival=None, progress=True):
    shown = [RoundProgressBar(metrics=SHOWN)] if progress else []
    trainer = FederatedTrainer(
        max_rounds=ROUNDS,
        strategy=ExactFedAvg(fraction_evaluate=0.0),
        seed=7,
        callbacks=[*shown, RoundCheckpoint(), RoundLedger()],
        default_root_dir=folder,
        enable_progress_bar=progress,
    )
    server = server_app(LitDigits, trainer, evaluate=evaluate)
    client = client_app(LitDigits, data, trainer={"max_epochs": 4, "accelerator": "cpu"})
    run_local(server, client, num_clients=CLIENTS, arrival=arrival, faults=misbehave)
    return trainer.result


def shuffled(messages):
    return random.Random(len(messages)).sample(messages, len(messages))


def table(rounds):
    shown = Table("round", "clients", "loss", "accuracy", "gates open", "kB up")
    for record in rounds[1:]:
        m = record.metrics
        clients = f"{len(record.accepted)}/{len(record.sampled)}"
        shown.add_row(
            str(record.server_round),
            clients,
            *(f"{m[name]:.3f}" for name in SHOWN),
            f"{m['bytes_up'] / 1000:.0f}",
        )
    return shown


def plot(rounds, path):
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    x = [record.server_round for record in rounds]
    for name, label, color in zip(SHOWN, ("loss", "accuracy", "gates open"), ("C3", "C0", "C2"), strict=True):
        left.plot(x, [r.metrics[name] for r in rounds], marker="o", color=color, label=label)
    for record in rounds:
        for rejection in record.rejected:
            left.axvline(record.server_round, color="0.7", linestyle=":")
            note = f"client {rejection.client_id}\nleft out:\n{rejection.reason}"
            left.annotate(note, (record.server_round, 1.6), fontsize=8)
    left.set(xlabel="round", title=f"{CLIENTS} clients, label-skewed digits", ylim=(0, 2.4))
    left.legend(loc="upper right")
    figure.savefig(path, dpi=120)


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    folder = Path(tempfile.mkdtemp(prefix="federated-digits-"))
    result = run(folder / "first")
    print_rich(table(result.rounds))
    plot(result.rounds, folder / "rounds.png")
    print(f"accuracy on held-out digits: {result.metrics['server_accuracy']:.3f}")
    ledger = verify_ledger(folder / "first")
    print(f"ledger: {ledger.rounds} rounds, {'whole' if ledger.ok else ledger.problems}")
    print(f"plot: {folder / 'rounds.png'}")
    command = os.path.relpath(Path(sys.executable).with_name("lightning-fl-ext"))
    print(f"report: {command} show {folder / 'first'}")
    print("once more, with the clients answering in another order ...")
    again = run(folder / "second", arrival=shuffled, progress=False)
    print(f"digest: {again.digest}\nthe same digest: {again.digest == result.digest}")


if __name__ == "__main__":
    main()
