"""Learn which hidden units of a classifier are needed.

A gate for each of 128 hidden units is learned together with the weights; a penalty on the expected number of
open gates closes those that scikit-learn's handwritten digits can be told apart without.

Expected output (figures may differ a little on other hardware or torch builds):

    epoch 10: 60.3 expected open, 0.53 bits each
    epoch 20: 37.2 expected open, 0.27 bits each
    epoch 30: 27.9 expected open, 0.16 bits each
    accuracy on held-out digits, gates by mean: 0.969
    accuracy on held-out digits, gates by threshold: 0.971
    open gates: 27 of 128
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

from lightning_fl_ext import GateMonitor, StochasticGateModule

warnings.filterwarnings("ignore", module="lightning.*")
logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


class LitDigits(L.LightningModule):
    def __init__(self, hidden: int = 128, init_prob: float = 0.9, penalty: float = 5e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(64, hidden), nn.ReLU())
        self.gate = StochasticGateModule(hidden, init_prob=init_prob)
        self.head = nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.gate(self.body(images)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, digits = batch
        return F.cross_entropy(self(images), digits) + self.hparams.penalty * self.gate.expected_open()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [
                {"params": [*self.body.parameters(), *self.head.parameters()], "lr": 3e-3},
                {"params": self.gate.parameters(), "lr": 3e-2},
            ]
        )


class PrintGates(L.Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (trainer.current_epoch + 1) % 10 == 0:
            logged = trainer.callback_metrics
            expected, entropy = logged["gate/expected_open"], logged["gate/entropy"]
            print(f"epoch {trainer.current_epoch + 1}: {expected:.1f} expected open, {entropy:.2f} bits each")


def main() -> None:
    torch.set_num_threads(1)  # The matrices are small.
    L.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(
        torch.tensor(pixels / 16).float(), torch.tensor(labels), test_size=0.25, random_state=0
    )
    train_images, test_images, train_digits, test_digits = split
    data = DataLoader(TensorDataset(train_images, train_digits), batch_size=64, shuffle=True)

    model = LitDigits()
    trainer = L.Trainer(
        max_epochs=30,
        accelerator="cpu",
        callbacks=[GateMonitor(), PrintGates()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, data)

    model.eval()
    for evaluation in ("mean", "threshold"):
        model.gate.evaluation = evaluation
        with torch.no_grad():
            accuracy = (model(test_images).argmax(1) == test_digits).float().mean()
        print(f"accuracy on held-out digits, gates by {evaluation}: {accuracy:.3f}")
    opened = int((model.gate.probs > 0.5).sum())
    print(f"open gates: {opened} of {model.gate.probs.numel()}")


if __name__ == "__main__":
    main()
