"""lightly: SimCLR, as its tutorial writes it. A batch is two views of each image, and their names."""

import lightning.pytorch as L
import numpy as np
import torch
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app


class SimCLR(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        )  # fmt: skip
        self.head = SimCLRProjectionHead(8, 16, 8)
        self.criterion = NTXentLoss()

    def training_step(self, batch, _):
        views, _, _ = batch
        first, second = (self.head(self.backbone(view)) for view in views)
        return self.criterion(first, second)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def data(context):
    site = context.node_config["partition-id"]
    draw = np.random.default_rng(site)
    transform = SimCLRTransform(input_size=32)
    images = [
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range((18, 14, 11)[site])
    ]
    examples = [(transform(image), 0, f"{site}-{i}.png") for i, image in enumerate(images)]
    return DataLoader(examples, batch_size=4, shuffle=True, collate_fn=MultiViewCollate())


if __name__ == "__main__":
    quiet()
    check("lightly", "SimCLRProjectionHead", SimCLR, client_app(SimCLR, data, CPU), (18, 14, 11))
