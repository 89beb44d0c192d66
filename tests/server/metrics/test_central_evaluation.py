"""A module that assigns a buffer while it is evaluated takes the next round's weights all the same."""

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_fl_ext import FederatedTrainer, client_app, run_local, server_app


class Remembers(L.LightningModule):
    """Assigns its buffers in `validation_step`; one of them is not in the state dict."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 1.0]))
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def training_step(self, batch, _):
        return (batch * self.weight).square().mean()

    def validation_step(self, batch, _):
        self.last = batch[0] * self.weight
        self.hidden = self.hidden + 1
        self.log("val_loss", (batch * self.weight).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(L.LightningDataModule):
    def __init__(self, scale=1.0):
        super().__init__()
        self.batches = DataLoader(scale * torch.arange(1.0, 9.0).reshape(4, 2), batch_size=2)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        return self.batches


def validate_within(model):
    """Validates as a user would: Lightning's default is inference mode."""
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = L.Trainer(accelerator="cpu", enable_model_summary=False, **options)
    return trainer.validate(model, Data(), verbose=False)[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("evaluate", [Data(), validate_within], ids=["data", "function"])
def test_three_rounds_with_a_module_that_assigns_a_buffer_in_validation(toy, evaluate):
    result = toy.make_trainer(max_rounds=3).fit(Remembers(), toy.make_grid(3), evaluate=evaluate)
    assert [record.server_round for record in result.rounds] == [0, 1, 2, 3]
    weight = result.model.weight.detach()
    expected = float((Data().batches.dataset * weight).mean())
    assert result.rounds[-1].metrics["server_val_loss"] == pytest.approx(expected, rel=1e-6)
    assert not any(tensor.is_inference() for tensor in result.model.buffers())
    result.model.load_state_dict({**result.model.state_dict(), "last": torch.ones(2)})


def test_on_the_clients_such_a_module_evaluates_and_trains_round_after_round():
    client = client_app(
        Remembers,
        lambda context: Data(1 / (8 + int(context.node_config["partition-id"]))),
        trainer={"accelerator": "cpu"},
    )
    trainer = FederatedTrainer(max_rounds=3, enable_progress_bar=False)
    run_local(server_app(Remembers, trainer), client, num_clients=3)
    assert [len(record.accepted) for record in trainer.rounds] == [3, 3, 3]
    assert not any(record.rejected for record in trainer.rounds)
    assert trainer.rounds[-1].metrics["val_loss"] < trainer.rounds[0].metrics["val_loss"]
