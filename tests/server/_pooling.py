"""A federation of classifiers whose metrics are pooled, and their values computed on all data at once."""

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score, MulticlassRecall
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_recall

from lightning_fl_ext import ExactFedAvg, FederatedTrainer, LocalGrid, client_app
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.server.screening.rejection import Reason

WARNINGS = [
    pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:No (positive|negative) samples in targets"),
]
CLASSES = 3
TRAIN = [16, 9, 12, 30]
VALIDATION = [37, 5, 0, 20]  # four batches, a single one, none, and three of which the last is short
BATCH = 8
DEVICE = {"accelerator": "cpu", "devices": 1}


def make_split(sizes, seed):
    """Examples of each client; the last client lacks the last class."""
    g = torch.Generator().manual_seed(seed)
    split = []
    for client, n in enumerate(sizes):
        y = torch.randint(0, CLASSES - (client == 3), (n,), generator=g)
        split.append((torch.randn(n, 4, generator=g) + F.one_hot(y, 4), y))
    return split


TRAIN_SET, VALIDATION_SET = make_split(TRAIN, 1), make_split(VALIDATION, 2)


class Data(L.LightningDataModule):
    def __init__(self, context):
        super().__init__()
        self.client = int(context.node_config["partition-id"])

    def train_dataloader(self):
        return DataLoader(TensorDataset(*TRAIN_SET[self.client]), BATCH)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*VALIDATION_SET[self.client]), BATCH)


class Base(L.LightningModule):
    """A linear classifier. `seen` notes every validation's logits and labels, as a reference."""

    seen = []

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        logits, y = self(batch[0]), batch[1]
        self.seen.append((logits.detach(), y))
        self.measure(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.3)


class LogsObjects(Base):
    """Logs metric objects, and a plain loss."""

    def __init__(self):
        super().__init__()
        self.acc = MulticlassAccuracy(CLASSES, average="micro")
        self.val = MetricCollection([MulticlassF1Score(CLASSES), MulticlassRecall(CLASSES)], prefix="val/")

    def measure(self, logits, y):
        self.acc(logits, y)
        self.val.update(logits, y)
        self.log("val_acc", self.acc, on_step=False, on_epoch=True)
        self.log_dict(self.val)
        self.log("val_loss", F.cross_entropy(logits, y))


class LogsValues(LogsObjects):
    """Computes, logs and resets by hand."""

    def measure(self, logits, y):
        self.acc.update(logits, y)
        self.val.update(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y))

    def on_validation_epoch_end(self):
        self.log("val_acc", self.acc.compute())
        self.log_dict(self.val.compute())
        self.acc.reset()
        self.val.reset()


def expected(logits, y):
    return {
        "val_acc": multiclass_accuracy(logits, y, CLASSES, "micro"),
        "val/MulticlassF1Score": multiclass_f1_score(logits, y, CLASSES),
        "val/MulticlassRecall": multiclass_recall(logits, y, CLASSES),
        "val_loss": F.cross_entropy(logits, y),
    }


def pooled_seen():
    return tuple(torch.cat(parts) for parts in zip(*Base.seen, strict=True))


def pooled_predictions(model, clients=range(4), split=VALIDATION_SET):
    x, y = (torch.cat([split[c][i] for c in clients]) for i in (0, 1))
    with torch.no_grad():
        return model.layer(x), y


def run(tmp_path, module, *, client=None, evaluate=1.0, arrival=None, faults=None, central=None, **options):
    """Fit over a local grid; `evaluate` is the strategy's fraction of clients."""
    app = client or client_app(module, Data, DEVICE)
    trainer = FederatedTrainer(
        **{
            "max_rounds": 1,
            "strategy": ExactFedAvg(fraction_evaluate=evaluate),
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
            **options,
        }
    )
    grid = LocalGrid(app, 4, arrival=arrival, faults=faults)
    trainer.fit(module, grid, evaluate=central)
    return trainer


def only(*names):
    """A module class with the given metric builders by attribute, logged as objects."""
    builders = dict(names)

    class Only(Base):
        def __init__(self):
            super().__init__()
            for name, build in builders.items():
                setattr(self, name, build())

        def measure(self, logits, y):
            for name in builders:
                metric = getattr(self, name)
                binary, scores = isinstance(metric, BinaryAUROC), logits.softmax(-1)
                metric.update(scores[:, 0] if binary else scores, (y == 0).long() if binary else y)
                self.log(f"val_{name}", metric)

    return Only


def app_of(modules, **options):
    """A client app whose module is each client's own."""
    return app_of_apps([client_app(module, Data, DEVICE, **options) for module in modules])


def app_of_apps(apps):
    """A client app that is each client's own."""
    app = ClientApp()

    def answer(message, context):
        return apps[int(context.node_config["partition-id"])](message, context)

    app.train()(answer)
    app.evaluate()(answer)
    app.query()(answer)
    return app


def is_evaluation(reply, client):
    """Whether this reply is that client's, to an evaluation that asked for metric states."""
    return (
        reply.has_content()
        and METRIC_STATES in reply.content
        and reply.content["client"]["client-id"] == client
        and not reply.content.array_records
    )


def metrics_left_out(trainer, client):
    return [r for r in trainer.rounds[-1].rejected if r.client_id == client and r.reason is Reason.METRIC]
