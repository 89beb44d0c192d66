"""Small LightningModules, and settings of their Trainers, that tests of several parts fit."""

from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}
"""A Trainer that writes nothing anywhere."""


class Lit(L.LightningModule):
    """A linear layer and a batch norm (float and integer buffers) that records the batches it trained on."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.norm = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 1)
        self.sizes: list[int] = []

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        dtype = self.layer.weight.dtype
        return (self.layer(self.norm(x.to(dtype))) - y.to(dtype)).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.sizes.append(len(batch[0]))
        loss = self.loss(batch)
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class Validated(Lit):
    """Logs losses outside training too, and records the weights it was validated with."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__(learning_rate)
        self.validated: list[Tensor] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validated.append(self.layer.weight.detach().clone())
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch), batch_size=len(batch[0]))


def built_late(base: type[Lit], hook: str = "configure_model") -> type[Lit]:
    """Derive a module whose layer is built by a hook, not by its constructor."""

    class Late(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.layer = None

    def build(self: Any, **_: Any) -> None:
        if self.layer is None:
            self.layer = nn.Linear(3, 1)

    setattr(Late, hook, build)
    return Late
