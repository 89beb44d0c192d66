"""A client over two processes, run as a script: prints the metrics of what it pools to as JSON."""

import json
import os
import sys

import lightning.pytorch as L
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef

from lightning_fl_ext import client_app
from lightning_fl_ext.engines.private import ensure_identity, set_message_id
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.metrics.pooling import pool_metrics, reduce_scalars
from lightning_fl_ext.wire import to_record


class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.acc = MulticlassAccuracy(3, average="micro")
        self.f1 = MulticlassF1Score(3)
        self.r = PearsonCorrCoef()
        self.private = MulticlassF1Score(3)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def validation_step(self, batch, _, dataloader_idx=0):
        logits, y = self.layer(batch[0]), batch[1]
        loss = nn.functional.cross_entropy(logits, y)
        if dataloader_idx:
            self.log("other_loss", loss, sync_dist=True, add_dataloader_idx=False)
            return
        self.acc(logits, y)
        self.log("val_acc", self.acc, add_dataloader_idx=False)
        self.private(logits, y)
        self.log("private_f1", self.private, add_dataloader_idx=False)
        self.f1.update(logits, y)
        self.r.update(logits[:, 0], y.float())
        self.log("val_loss", loss, sync_dist=True, add_dataloader_idx=False)

    def on_validation_epoch_end(self):
        self.log("val_f1", self.f1.compute())
        self.log("val_r", self.r.compute())
        self.f1.reset()
        self.r.reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)  # so that fits on one and two processes end alike


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        g = torch.Generator().manual_seed(1)
        y = torch.randint(0, 3, (40,), generator=g)
        self.data = TensorDataset(torch.randn(40, 4, generator=g) + nn.functional.one_hot(y, 4), y)

    def train_dataloader(self):
        return DataLoader(self.data, 10)

    def val_dataloader(self):
        return [DataLoader(self.data, 10), DataLoader(Subset(self.data, range(8)), 4)]


def ask(kind):
    ensure_identity()
    arrays = to_record({name: tensor.numpy() for name, tensor in Lit().state_dict().items()})
    config = ConfigRecord({"server-round": 1, METRIC_STATES: True})
    made = Message(RecordDict({"arrays": arrays, "config": config}), 7, kind)
    set_message_id(made, kind)
    return made


def main(strategy):
    devices = 1 if strategy == "auto" else 2
    trainer = {"accelerator": "cpu", "devices": devices, "strategy": strategy}
    client = client_app(Lit, Data, trainer, exclude_metrics=("private",))
    config = {"partition-id": 0, "num-partitions": 1}
    context = Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})
    pooled = {}
    for kind in ("train", "evaluate"):
        content = client(ask(kind), context).content
        stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content[METRIC_STATES].items()}
        values, left_out = pool_metrics(Lit(), {"0": stages}, 1)
        assert not left_out, left_out
        update = ClientUpdate({}, 40, metrics=dict(content["metrics"]))
        scalars = reduce_scalars({"0": update}, {"0": stages})
        told = stages["validate"]
        pooled[kind] = {**scalars, **values, "examples": told.pack.num_examples}
        pooled[kind] |= {f"examples of {name}": of.num_examples for name, of in told.scalars.items()}
        assert "private_f1" not in content["metrics"], "neither its states nor its value"
        assert "private" not in told.pack.metrics
    return pooled


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = {strategy: main(strategy) for strategy in sys.argv[1:]}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("RESULT", json.dumps(result))
