"""timm: an image classifier inside a LightningModule of one's own. It logs nothing, so the batch is counted."""

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ecosystem._harness import CPU, check, quiet
from lightning_fl_ext import client_app

SIZES = (22, 13, 9)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model("test_convnext", pretrained=False, num_classes=3)

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(images), labels))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Images(L.LightningDataModule):
    def __init__(self, site):
        super().__init__()
        self.site = site

    def loader(self, size):
        labels = torch.randint(3, (size,))
        return DataLoader(TensorDataset(torch.randn(size, 3, 32, 32), labels), batch_size=8)

    def train_dataloader(self):
        return self.loader(SIZES[self.site])

    def val_dataloader(self):
        return self.loader(5 + self.site)


def data(context):
    return Images(context.node_config["partition-id"])


if __name__ == "__main__":
    quiet()
    check("timm", "create_model", Classifier, client_app(Classifier, data, CPU), SIZES, evaluated=(5, 6, 7))
