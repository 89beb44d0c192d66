"""timm: an image classifier in a LightningModule of one's own. It logs no batch size: the loader tells."""

import lightning.pytorch as L
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from ecosystem._harness import CPU, Site, check, quiet
from lightning_fl_ext import client_app


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model("test_resnet", pretrained=False, num_classes=3)

    def training_step(self, batch, _):
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(images), labels))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


def images(size):
    return DataLoader(TensorDataset(torch.randn(size, 3, 32, 32), torch.randint(3, (size,))), batch_size=8)


def data(context):
    site = context.node_config["partition-id"]
    return Site(images((22, 14, 10)[site]), images(5 + site))


if __name__ == "__main__":
    quiet()
    client = client_app(Classifier, data, CPU)
    check("timm", "create_model(...)", Classifier, client, (22, 14, 10), evaluated=(5, 6, 7))
