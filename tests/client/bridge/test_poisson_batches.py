"""Batches that are drawn by chance, as for DP-SGD, count what was drawn, and an empty one counts nothing."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_fl_ext import FlowerBridge

DRAWN = {
    "some empty": [[3, 1, 4], [], [5], [2, 6, 0, 9]],
    "the first empty": [[], [3, 1], []],
    "an example twice": [[0, 1], [0, 2, 3]],
    "all empty": [[], []],
}


def collate(examples):
    return default_collate(examples) if examples else [torch.zeros(0, 3), torch.zeros(0, 1)]


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN.keys())
def test_a_fit_counts_what_was_drawn(kit, drawn):
    class Net(kit.Lit):
        def loss(self, batch):
            return self.layer(batch[0]).square().sum()

    bridge = FlowerBridge(client_id="a")
    rows = TensorDataset(torch.randn(10, 3), torch.randn(10, 1))
    data = DataLoader(rows, batch_sampler=drawn, collate_fn=collate)
    kit.fit(bridge, module=Net(), data=data)
    assert bridge.update.num_examples == sum(map(len, drawn))
    assert bridge.update.steps == len(drawn)
