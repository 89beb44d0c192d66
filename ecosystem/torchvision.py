"""torchvision's detection: RetinaNet on lists of images of different sizes and their boxes."""

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app


class Detector(L.LightningModule):
    def __init__(self):
        super().__init__()
        backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU())
        backbone.out_channels = 8
        anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((0.5, 1.0),))
        self.net = RetinaNet(backbone, num_classes=2, anchor_generator=anchors, min_size=48, max_size=64)

    def training_step(self, batch, _):
        images, targets = batch
        return sum(self.net(images, targets).values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def example():
    corner = 20 * torch.rand(1, 2)
    box = torch.cat([corner, corner + 5 + 15 * torch.rand(1, 2)], dim=1)
    return torch.rand(3, *torch.randint(48, 64, (2,)).tolist()), {"boxes": box, "labels": torch.tensor([1])}


def data(context):
    size = (13, 9, 7)[context.node_config["partition-id"]]
    examples = [example() for _ in range(size)]
    return DataLoader(
        examples, batch_size=4, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True))
    )


if __name__ == "__main__":
    quiet()
    check("torchvision", "detection.RetinaNet", Detector, client_app(Detector, data, CPU), (13, 9, 7))
