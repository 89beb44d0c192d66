"""Five clients train which weights of a random network to use, and send a fraction of a bit per weight.

Run it with ``python examples/fedpm_digits.py`` (about 15 seconds). Nothing but ``strategy=FedPM()`` and
``exchange=MaskExchange()`` makes it another federation than one that sends weights: `client_app` puts a
`FlowerBridge` into each client's Trainer as ever. A client holds what it was sent last, so that only what the
round has changed comes down; at first nothing, since both ends build the module from one seed. In the end the
masks are baked into the weights, and the sparse network is loaded by a process that cannot import this
package.

Expected output (figures may differ on other hardware or torch builds):

    round 1/8  clients 5/5  server_accuracy 0.7667
    ...
    37888 frozen weights; bits for each of them in a message, headers included:
    ┃ round ┃ accuracy ┃ bits up ┃ bits down ┃ both ways ┃
    │ 1     │ 0.767    │ 0.357   │ 0.018     │ 0.374     │
    │ 2     │ 0.911    │ 0.250   │ 1.554     │ 1.804     │
    ...
    │ 8     │ 0.960    │ 0.085   │ 0.456     │ 0.541     │
    34 kB for each client, against 2425 kB as float weights
    plot: ...
    baked: 50 % of the weights are left
    without this package, a Sequential from net.pt: accuracy 0.951
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as L
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from rich import print as print_rich
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    FederatedTrainer,
    FedPM,
    MaskedModule,
    MaskExchange,
    RoundProgressBar,
    client_app,
    run_local,
    server_app,
)

CLIENTS, ROUNDS = 5, 8

images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=0.25, random_state=0)
train_set = TensorDataset(torch.tensor(train_x, dtype=torch.float32), torch.tensor(train_y))
test_x, test_y = torch.tensor(test_x, dtype=torch.float32), torch.tensor(test_y)


class LitMasked(L.LightningModule):
    def __init__(self):
        super().__init__()
        layers = nn.Linear(64, 512, bias=False), nn.ReLU(), nn.Linear(512, 10, bias=False)
        self.net = MaskedModule(nn.Sequential(*layers), seed=0)

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def data(context):
    share = range(int(context.node_config["partition-id"]), len(train_set), CLIENTS)
    return DataLoader(torch.utils.data.Subset(train_set, share), batch_size=32, shuffle=True)


def evaluate(model):
    """With the mean mask: each weight times its probability of being used."""
    return {"accuracy": (model.net(test_x).argmax(1) == test_y).float().mean().item()}


def bits(rounds, way, weights):
    return [8 * record.metrics[f"bytes_{way}"] / CLIENTS / weights for record in rounds]


def table(rounds, weights):
    shown = Table("round", "accuracy", "bits up", "bits down", "both ways")
    for record, up, down in zip(
        rounds, bits(rounds, "up", weights), bits(rounds, "down", weights), strict=True
    ):
        accuracy = record.metrics["server_accuracy"]
        figures = (f"{number:.3f}" for number in (accuracy, up, down, up + down))
        shown.add_row(str(record.server_round), *figures)
    return shown


def plot(rounds, weights, path):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    x = [record.server_round for record in rounds]
    left.plot(x, [record.metrics["server_accuracy"] for record in rounds], marker="o")
    left.set(xlabel="round", title="accuracy of the mean mask")
    for way in ("up", "down"):
        right.plot(x, bits(rounds, way, weights), marker="o", label=way)
    right.set(xlabel="round", title="bits per weight in a message", yscale="log")
    right.legend()
    figure.savefig(path, dpi=120)


PLAIN = """
import sys
sys.modules["lightning_fl_ext"] = None  # from here on, importing it fails
import torch
from torch import nn

layers = nn.Linear(64, 512, bias=False), nn.ReLU(), nn.Linear(512, 10, bias=False)
net = nn.Sequential(*layers)
net.load_state_dict(torch.load("net.pt", weights_only=True))
x, y = torch.load("test.pt", weights_only=True)
accuracy = (net(x).argmax(1) == y).float().mean()
print(f"without this package, a {type(net).__name__} from net.pt: accuracy {accuracy:.3f}")
"""


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    folder = Path(tempfile.mkdtemp(prefix="fedpm-digits-"))
    exchange = MaskExchange()
    trainer = FederatedTrainer(
        max_rounds=ROUNDS,
        strategy=FedPM(fraction_evaluate=0.0),
        exchange=exchange,
        callbacks=[RoundProgressBar(metrics=("server_accuracy",))],
        default_root_dir=folder,
    )
    client = client_app(LitMasked, data, trainer={"max_epochs": 3, "accelerator": "cpu"}, exchange=exchange)
    run_local(server_app(LitMasked, trainer, evaluate=evaluate), client, num_clients=CLIENTS)

    masked, rounds = trainer.result.model.net, trainer.rounds[1:]
    weights = sum(probs.numel() for probs in masked.probs.values())
    print(f"{weights} frozen weights; bits for each of them in a message, headers included:")
    print_rich(table(rounds, weights))
    sent = sum(bits(rounds, "up", weights) + bits(rounds, "down", weights)) * weights / 8000
    print(f"{sent:.0f} kB for each client, against {ROUNDS * 2 * 4 * weights / 1000:.0f} kB as float weights")
    plot(rounds, weights, folder / "rounds.png")
    print(f"plot: {folder / 'rounds.png'}")

    baked = masked.bake("threshold")
    kept = torch.cat([weight.flatten() != 0 for weight in baked.parameters()]).float().mean()
    print(f"baked: {100 * kept:.0f} % of the weights are left")
    torch.save(baked.state_dict(), folder / "net.pt")
    torch.save((test_x, test_y), folder / "test.pt")
    subprocess.run([sys.executable, "-c", PLAIN], cwd=folder, check=True)


if __name__ == "__main__":
    main()
