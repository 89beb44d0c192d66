"""A network that learns which of its random weights to use, and never changes one of them.

Run it with ``python examples/masked_network.py`` (about 10 seconds). The scores of the masks are trained by a
Lightning Trainer; then the masks are baked into a plain network, saved, and loaded without this package.

Expected output (figures may differ on other hardware or torch builds):

    weights: 24896, each ±e/√fan_in from seed 0, frozen
    accuracy before training:        0.08
    accuracy, mean mask:             0.95
    accuracy, threshold mask, baked: 0.95
    weights kept by the baked net:   48 %
    reloaded as a plain network:     0.95
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext.gates import MaskedModule

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*does not have many workers|.*LeafSpec")
images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(images / 16, labels, test_size=0.25, random_state=0)
train_set = TensorDataset(torch.tensor(train_x, dtype=torch.float32), torch.tensor(train_y))
test_x, test_y = torch.tensor(test_x, dtype=torch.float32), torch.tensor(test_y)


def make_net():
    return nn.Sequential(
        nn.Linear(64, 256, bias=False),
        nn.ReLU(),
        nn.Linear(256, 32, bias=False),
        nn.ReLU(),
        nn.Linear(32, 10, bias=False),
    )


class LitMasked(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = MaskedModule(make_net(), seed=0)

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def accuracy(net):
    with torch.no_grad():
        return (net.eval()(test_x).argmax(1) == test_y).float().mean().item()


def main():
    torch.set_num_threads(1)  # the net is tiny
    L.seed_everything(0, verbose=False)
    model = LitMasked()
    masks = model.net.probs
    print(f"weights: {sum(p.numel() for p in masks.values())}, each ±e/√fan_in from seed 0, frozen")
    print(f"accuracy before training:        {accuracy(model.net):.2f}")
    model.train()
    trainer = L.Trainer(
        max_epochs=40,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train_set, batch_size=64, shuffle=True))
    print(f"accuracy, mean mask:             {accuracy(model.net):.2f}")

    baked = model.net.bake("threshold")
    kept = torch.cat([weight.flatten() != 0 for weight in baked.parameters()]).float().mean()
    print(f"accuracy, threshold mask, baked: {accuracy(baked):.2f}")
    print(f"weights kept by the baked net:   {100 * kept:.0f} %")

    with tempfile.TemporaryDirectory() as folder:
        torch.save(baked.state_dict(), Path(folder) / "net.pt")
        plain = make_net()
        plain.load_state_dict(torch.load(Path(folder) / "net.pt", weights_only=True))
    print(f"reloaded as a plain network:     {accuracy(plain):.2f}")


if __name__ == "__main__":
    main()
