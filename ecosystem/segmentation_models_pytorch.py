"""segmentation-models-pytorch: a U-Net and its loss in a LightningModule of one's own; batches are dicts."""

import lightning.pytorch as L
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import client_app


class Segmenter(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = smp.Unet(
            "mobilenet_v2", encoder_depth=3, encoder_weights=None, decoder_channels=(16, 8, 8), classes=1
        )
        self.dice = smp.losses.DiceLoss(mode="binary")

    def training_step(self, batch, _):
        return self.dice(self.net(batch["image"]), batch["mask"])

    def validation_step(self, batch, _):
        self.log("val_dice", self.dice(self.net(batch["image"]), batch["mask"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


def pictures(size):
    mask = (torch.rand(size, 1, 32, 32) > 0.5).float()
    pairs = [{"image": torch.randn(3, 32, 32), "mask": mask[i]} for i in range(size)]
    return DataLoader(pairs, batch_size=4)


def data(context):
    site = context.node_config["partition-id"]
    return Site(pictures((14, 9, 7)[site]), pictures(3 + site))


if __name__ == "__main__":
    quiet()
    client = client_app(Segmenter, data, CPU)
    check("segmentation_models_pytorch", "Unet", Segmenter, client, (14, 9, 7), evaluated=(3, 4, 5))
