"""What a user of the command line has: a LightningModule and a function that gives clients their data."""

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.regression import MeanAbsoluteError

from lightning_fl_ext import AlgorithmStrategy, ClientAlgorithm, StochasticGateModule


class Lit(L.LightningModule):
    def __init__(self, width=4, lr=0.1):
        super().__init__()
        self.body = torch.nn.Linear(4, width)
        self.head = torch.nn.Linear(width, 1)
        self.error = MeanAbsoluteError()
        self.lr = lr

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))

    def training_step(self, batch, _):
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Validated(Lit):
    def validation_step(self, batch, _):
        self.error(self(batch[0]), batch[1])
        self.log("val_mae", self.error)


class Gated(Lit):
    """Every other gate stays closed, since nothing trains them."""

    def __init__(self, width=4, lr=0.1):
        super().__init__(width, lr)
        self.gate = StochasticGateModule(width, evaluation="threshold")
        self.gate.logits.data = torch.tensor([2.0, -2.0] * (width // 2))
        self.gate.requires_grad_(False)
        self.example_input_array = torch.ones(2, 4)

    def forward(self, x):
        return self.head(self.gate(torch.tanh(self.body(x))))


def rows(seed, count=16):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def data(context):
    client = int(context.node_config["partition-id"])
    return DataLoader(rows(client, 16 + 4 * client), batch_size=8, shuffle=True)


def of_both(context, round):
    assert round.server_round in (0, 1, 2)
    assert round.context is context
    return data(context)


def of_the_round(round):
    return data(round.context)


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        self.client = int(context.node_config["partition-id"])

    def train_dataloader(self):
        return DataLoader(rows(self.client), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(rows(100 + self.client), batch_size=16)


class Central(L.LightningDataModule):
    def val_dataloader(self):
        return DataLoader(rows(999), batch_size=16)


def measure(model):
    print("the user's own code prints")
    x, y = rows(999).tensors
    return {"mse": F.mse_loss(model(x), y).item()}


def failing(context):
    raise OSError("no such table: patients")


def fails_for_client_1(context):
    if context.node_config["partition-id"] == 1:
        raise OSError("no such table: patients")
    return data(context)


def index_and_number(index, number):
    """What `--data` is not."""


def make(width=4):
    return Lit(width)


def plain():
    return torch.nn.Linear(2, 2)


def needs(width):
    return Lit(width)


def broken():
    raise ZeroDivisionError("in the user's own constructor")


class Stopping(Lit):
    """Is interrupted, as by Ctrl-C, when the second round begins."""

    fits = 0

    def on_fit_start(self):
        Stopping.fits += 1
        if Stopping.fits == 4:
            raise KeyboardInterrupt


instance = Lit()
number = 3


def twice(batch):
    """Pairs of examples."""
    return 2 * len(batch[0])


def other_name():
    """The model, by Lightning's other name."""
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, _):
            return F.mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Other()


class Signs(ClientAlgorithm):
    name = "signs"

    def before_step(self, fit, parameters, optimizer):
        for parameter in parameters.values():
            parameter.grad.sign_()


class SignedAvg(AlgorithmStrategy):
    algorithm = "signs"
