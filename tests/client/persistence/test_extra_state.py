"""What a module keeps besides tensors (`get_extra_state`) stays at home, and goes on from round to round."""

from collections import Counter, OrderedDict, defaultdict

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import FederatedTrainer, LocalGrid, client_app

KINDS = {
    "dict": lambda fits: {"fits": fits},
    "ordered dict": lambda fits: OrderedDict(fits=fits),
    "default dict": lambda fits: defaultdict(int, fits=fits),
    "counter": lambda fits: Counter(fits=fits),
    "tuple": lambda fits: (fits,),
    "size": lambda fits: torch.Size([fits]),
    "list": lambda fits: [fits],
    "number": lambda fits: fits,
}


class Counted(nn.Module):
    """Counts fits, as an accountant of privacy counts steps."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.fits = kind, 0

    def get_extra_state(self):
        return KINDS[self.kind](self.fits)

    def set_extra_state(self, state):
        values = state.values() if isinstance(state, dict) else [state] if isinstance(state, int) else state
        (self.fits,) = values


class Net(L.LightningModule):
    def __init__(self, kind):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.counted = Counted(kind)

    def training_step(self, batch, _):
        return self.layer(batch[0]).square().mean()

    def on_train_end(self):
        self.counted.fits += 1

    def validation_step(self, batch, _):
        self.log("val_fits", float(self.counted.fits), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data(context):
    return DataLoader(TensorDataset(torch.randn(4 + context.node_config["partition-id"], 2)), batch_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_whatever_kind_of_mapping_or_sequence_it_is(kind):
    app = client_app(lambda: Net(kind), data, {"accelerator": "cpu", "devices": 1})
    trainer = FederatedTrainer(max_rounds=3, seed=7, enable_progress_bar=False)
    result = trainer.fit(lambda: Net(kind), LocalGrid(app, num_clients=3))
    assert not result.rejected
    assert [record.metrics["val_fits"] for record in result.rounds] == [1, 2, 3]
