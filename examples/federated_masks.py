"""Five clients train which weights of a random network to use, and send a fraction of a bit per weight.

Run it with ``python examples/federated_masks.py`` (about 15 seconds). Nothing but ``strategy=FedPM()`` and
``exchange=MaskExchange()`` makes it another federation than one that sends weights.

Expected output (figures may differ on other hardware or torch builds):

    37888 frozen weights; a message, headers included:
    round 1  accuracy 0.79  up 0.38 bits/weight  down 3.77 bits/weight
    round 2  accuracy 0.91  up 0.27 bits/weight  down 2.67 bits/weight
    ...
    round 8  accuracy 0.96  up 0.11 bits/weight  down 2.22 bits/weight
    108 kB for each client, against 2425 kB as float weights
    baked into a plain Sequential: accuracy 0.96
"""

import logging
import tempfile

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    FederatedTrainer,
    FedPM,
    MaskedModule,
    MaskExchange,
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


def main():
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the net is tiny
    exchange = MaskExchange()
    trainer = FederatedTrainer(
        max_rounds=ROUNDS,
        strategy=FedPM(fraction_evaluate=0.0),
        exchange=exchange,
        default_root_dir=tempfile.mkdtemp(prefix="federated-masks-"),
        enable_progress_bar=False,
    )
    client = client_app(LitMasked, data, trainer={"max_epochs": 3, "accelerator": "cpu"}, exchange=exchange)
    run_local(server_app(LitMasked, trainer, evaluate=evaluate), client, num_clients=CLIENTS)

    weights = sum(probs.numel() for probs in trainer.result.model.net.mask_probs().values())
    print(f"{weights} frozen weights; a message, headers included:")
    sent = 0
    for record in trainer.rounds[1:]:
        up, down = (record.metrics[f"bytes_{way}"] / CLIENTS for way in ("up", "down"))
        sent += up + down
        print(
            f"round {record.server_round}  accuracy {record.metrics['server_accuracy']:.2f}"
            f"  up {8 * up / weights:.2f} bits/weight  down {8 * down / weights:.2f} bits/weight"
        )
    floats = ROUNDS * 2 * 4 * weights
    print(f"{sent / 1000:.0f} kB for each client, against {floats / 1000:.0f} kB as float weights")
    plain = trainer.result.model.net.bake("threshold")
    accuracy = (plain(test_x).argmax(1) == test_y).float().mean()
    print(f"baked into a plain {type(plain).__name__}: accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
