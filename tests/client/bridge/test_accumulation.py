"""A client with fewer batches than its Trainer accumulates is told that its gradient is cut."""

import pytest

from lightning_fl_ext import FlowerBridge


def change(kit, batches, window):
    """The change of the bias in one epoch of batches that all have the gradient 1."""

    class Sloped(kit.Lit):
        def training_step(self, batch, _):
            return self.layer.bias.sum()

    module = Sloped(learning_rate=1.0)
    before = module.layer.bias.detach().clone()
    data = kit.loader(batches, batch_size=1)
    kit.fit(FlowerBridge(), module=module, data=data, accumulate_grad_batches=window)
    return (before - module.layer.bias.detach()).item()


def said(caplog):
    return [
        record.getMessage() for record in caplog.records if "accumulate_grad_batches" in record.getMessage()
    ]


def test_three_batches_of_eight_are_told_of_as_three_eighths(kit, caplog):
    assert change(kit, 3, 8) == pytest.approx(3 / 8)
    [text] = said(caplog)
    assert "it trains with 3/8 of its gradient" in text
    assert "no more batches than the smallest client has" in text


@pytest.mark.parametrize(("batches", "window"), [(8, 8), (9, 8), (3, 1)])
def test_enough_batches_are_not_told_of(kit, caplog, batches, window):
    change(kit, batches, window)
    assert said(caplog) == []
