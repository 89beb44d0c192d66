"""Close four fifths of a classifier's hidden units, without a penalty to guess.

The net of `gated_classifier.py` is trained with `GateTarget` in place of a penalty: three targets, and for
each the accuracy with the gates that are more likely closed than open removed.

Expected output (figures may differ a little on other hardware or torch builds):

    target 0.5: 0.500 expected open, 77 of 128 gates over one half, accuracy 0.976
    target 0.2: 0.200 expected open, 31 of 128 gates over one half, accuracy 0.962
    target 0.1: 0.100 expected open, 16 of 128 gates over one half, accuracy 0.933
"""

import logging
import warnings

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import GateTarget, StochasticGateModule

warnings.filterwarnings("ignore", module="lightning.*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


class LitDigits(L.LightningModule):
    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.gate = StochasticGateModule(hidden, evaluation="threshold")
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.gate(self.body(images)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [*self.body.parameters(), *self.head.parameters()]
        return torch.optim.Adam(
            [{"params": weights, "lr": 3e-3}, {"params": self.gate.parameters(), "lr": 3e-2}]
        )


def main() -> None:
    torch.set_num_threads(1)  # The matrices are small.
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(
        torch.tensor(pixels / 16).float(), torch.tensor(labels), test_size=0.25, random_state=0
    )
    train_images, test_images, train_digits, test_digits = split
    data = DataLoader(TensorDataset(train_images, train_digits), batch_size=64, shuffle=True)
    for target in (0.5, 0.2, 0.1):
        L.seed_everything(0, verbose=False)
        model = LitDigits()
        trainer = L.Trainer(
            max_epochs=20,
            accelerator="cpu",
            callbacks=[GateTarget(target)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        model.eval()
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_digits).float().mean()
            expected, over = model.gate.expected_open() / 128, int((model.gate.probs > 0.5).sum())
        print(
            f"target {target}: {expected:.3f} expected open, {over} of 128 gates over one half,"
            f" accuracy {accuracy:.3f}"
        )


if __name__ == "__main__":
    main()
