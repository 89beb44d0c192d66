"""Close four fifths of a digits net's channels, cut them out, and time what is left.

A net of three convolutions is trained without gates, and with gates on its channels, which `GateTarget` leads
to a fifth of them. `shrink` cuts out what has closed, and what is left is trained on. Beside it, as many
channels of the first net are pruned by `torch.nn.utils.prune`, by their norm, and it is trained on too: it
has zeros where channels were, and no less to compute. Where matplotlib is installed, the channels that are
left are drawn in `shrunk_digits.png`.

Expected output (times and last digits differ on other hardware or torch builds):

    160 channels, 16.2% of them left
                          parameters  accuracy      ms   speed
    full                      66,154     0.998    39.9    1.0x
    nn.utils.prune            66,154     0.982    43.2    0.9x
    gates, as trained         66,314     0.982    44.0    0.9x
    gates, shrunk              3,706     0.982     2.7   14.7x
    and trained on             3,706     0.984     2.4   16.7x
    shrunk and as trained differ by at most 1e-4: True
    the channels that are left: shrunk_digits.png
"""

import copy
import logging
import time
import warnings
from statistics import median

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import GateTarget, StochasticGateModule, shrink

warnings.filterwarnings("ignore", module="lightning.*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)

WIDTHS = (32, 64, 64)
OPEN = 0.2
EPOCHS, MORE_EPOCHS = 10, 3


class LitDigits(L.LightningModule):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in WIDTHS:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            if gated:
                layers.append(StochasticGateModule(width, dim=1, evaluation="threshold"))
            layers.append(nn.ReLU())
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(before * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        gates = [p for name, p in self.named_parameters() if name.endswith("logits")]
        weights = [p for name, p in self.named_parameters() if not name.endswith("logits")]
        return torch.optim.Adam([{"params": weights, "lr": 3e-3}, {"params": gates, "lr": 1e-1}])


def gates_of(model: nn.Module) -> list[StochasticGateModule]:
    return [part for part in model.modules() if isinstance(part, StochasticGateModule)]


def fit(model: LitDigits, data: DataLoader, epochs: int, *callbacks: L.Callback) -> None:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)


def pruned(model: LitDigits, data: DataLoader, fraction: float) -> LitDigits:
    """Zero the same fraction of every layer's channels, those of the smallest norm, and train on."""
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    for convolution in convolutions:
        prune.ln_structured(convolution, "weight", amount=1 - fraction, n=2, dim=0)
    fit(model, data, MORE_EPOCHS)
    for convolution in convolutions:
        prune.remove(convolution, "weight")
    return model


def milliseconds(models: list[nn.Module], images: Tensor, turns: int = 15) -> list[float]:
    """Median processor time of a forward; the models take turns, so that a busy moment hits all of them."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for _ in range(turns):
            for model, seconds in zip(models, times, strict=True):
                start = time.process_time()
                model(images)
                seconds.append(time.process_time() - start)
    return [1000 * median(seconds) for seconds in times]


def draw(gates: list[StochasticGateModule]) -> None:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(len(gates), 1, figsize=(8, 2.4), layout="constrained")
    for number, (gate, axis) in enumerate(zip(gates, axes, strict=True), 1):
        axis.imshow(gate.probs.detach()[None], aspect="auto", vmin=0, vmax=1, cmap="Greys")
        left = int(gate.open_positions().sum())
        axis.set_ylabel(f"{number}", rotation=0, labelpad=12)
        axis.set_title(f"convolution {number}: {left} of {gate.probs.numel()} channels are left", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig("shrunk_digits.png", dpi=120)
    print("the channels that are left: shrunk_digits.png")


def main() -> None:
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16).float().reshape(-1, 1, 8, 8)
    split = train_test_split(images, torch.tensor(labels), test_size=0.25, random_state=0)
    train_images, test_images, train_digits, test_digits = split
    data = DataLoader(TensorDataset(train_images, train_digits), batch_size=64, shuffle=True)

    L.seed_everything(0, verbose=False)
    full = LitDigits(gated=False)
    fit(full, data, EPOCHS)
    gated = LitDigits(gated=True)
    fit(gated, data, EPOCHS, GateTarget(OPEN, per_layer=True))
    small = shrink(gated, test_images[:2])
    trained_on = copy.deepcopy(small)
    fit(trained_on, data, MORE_EPOCHS)
    gates = gates_of(gated)
    left = sum(int(gate.open_positions().sum()) for gate in gates) / sum(WIDTHS)
    zeroed = LitDigits(gated=False)
    zeroed.load_state_dict(full.state_dict())
    zeroed = pruned(zeroed, data, left)

    models = {
        "full": full,
        "nn.utils.prune": zeroed,
        "gates, as trained": gated,
        "gates, shrunk": small,
        "and trained on": trained_on,
    }
    for model in models.values():
        model.eval()
    times = milliseconds([*models.values()], test_images)
    print(f"{sum(WIDTHS)} channels, {left:.1%} of them left")
    print(f"{'':<20}{'parameters':>12}{'accuracy':>10}{'ms':>8}{'speed':>8}")
    for (name, model), spent in zip(models.items(), times, strict=True):
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_digits).float().mean()
        size = sum(parameter.numel() for parameter in model.parameters())
        print(f"{name:<20}{size:>12,}{accuracy:>10.3f}{spent:>8.1f}{times[0] / spent:>7.1f}x")
    with torch.no_grad():
        difference = (small(test_images) - gated(test_images)).abs().max()
    print(f"shrunk and as trained differ by at most 1e-4: {bool(difference < 1e-4)}")
    draw(gates)


if __name__ == "__main__":
    main()
