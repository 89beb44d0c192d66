"""Metrics in a federation: what the server reports is the metric on all clients' data."""

import io
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from _pooling import (
    BATCH,
    CLASSES,
    DEVICE,
    TRAIN_SET,
    VALIDATION_SET,
    WARNINGS,
    Base,
    Data,
    LogsObjects,
    LogsValues,
    app_of,
    expected,
    only,
    pooled_predictions,
    pooled_seen,
    run,
)
from flwr.clientapp import ClientApp
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MinMaxMetric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)
from torchmetrics.regression import PearsonCorrCoef
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LocalGrid,
    RoundCheckpoint,
    RoundEarlyStopping,
    RoundProgressBar,
    client_app,
)
from lightning_fl_ext.server.screening.rejection import Reason

pytestmark = WARNINGS


@pytest.mark.parametrize("module", [LogsObjects, LogsValues])
def test_an_evaluation_reports_the_metrics_on_all_data_under_the_modules_names(tmp_path, module):
    trainer = run(tmp_path, module)
    want = expected(*pooled_predictions(trainer.result.model))
    record = trainer.rounds[-1]
    for name, value in want.items():
        assert record.metrics[name] == pytest.approx(float(value), abs=1e-6), name
        assert trainer.callback_metrics[name] == record.metrics[name]
    own = {name for name in record.metrics if not name.startswith(("fit_", "clients_", "bytes_"))}
    assert own == set(want)


@pytest.mark.parametrize("module", [LogsObjects, LogsValues])
def test_a_fit_that_validates_reports_the_metrics_on_all_clients_predictions(tmp_path, module):
    """Each client validates its own trained weights; the pool is of these predictions."""
    trainer = run(tmp_path, module, evaluate=0.0)
    metrics = trainer.rounds[-1].metrics
    for name, value in expected(*pooled_seen()).items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-6), name
    assert trainer.rounds[-1].accepted == ("0", "1", "2", "3"), "the client without validation data trains on"
    assert [str(r) for r in trainer.rounds[-1].rejected] == [
        "client `2`, round 1: idle: no validation examples"
    ]


@pytest.mark.parametrize("partition_id", [True, False], ids=["declares another", "declares none"])
def test_clients_known_by_the_registered_name_of_their_node_are_pooled(tmp_path, partition_id):
    app = ClientApp()

    def answer(message, context):
        data = Data(context)
        if not partition_id:
            context.node_config.clear()
        return client_app(LogsObjects, lambda _: data, DEVICE)(message, context)

    app.train()(answer)
    app.evaluate()(answer)

    class Registered(LocalGrid):
        def get_nodes(self):
            return [SimpleNamespace(node_id=n, name=f"site-{i}") for i, n in enumerate(self.get_node_ids())]

    strategy = ExactFedAvg(fraction_evaluate=0.0)
    trainer = FederatedTrainer(1, strategy, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.fit(LogsObjects, Registered(app, 4))
    assert trainer.rounds[-1].accepted == ("site-0", "site-1", "site-2", "site-3")
    assert [(r.client_id, r.reason) for r in trainer.rounds[-1].rejected] == [("site-2", Reason.IDLE)]
    accuracy = expected(*pooled_seen())["val_acc"]
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(accuracy), abs=1e-6)


def test_averaging_would_have_been_wrong(tmp_path):
    """The clients are unequal enough for these tests to mean something."""
    trainer = run(tmp_path, LogsObjects)
    parts = [multiclass_f1_score(*pooled_predictions(trainer.result.model, [c]), CLASSES) for c in (0, 1, 3)]
    mean = sum(n * f1 for n, f1 in zip((37, 5, 20), parts, strict=True)) / 62
    assert abs(float(mean) - trainer.callback_metrics["val/MulticlassF1Score"]) > 0.01


@pytest.mark.parametrize("bad", ["exclude", "raise"])
def test_the_client_without_a_validation_batch_is_named_and_is_no_error(tmp_path, bad, caplog):
    trainer = run(tmp_path, LogsObjects, on_bad_update=bad)
    record = trainer.rounds[-1]
    assert [str(r) for r in record.rejected] == [
        "client `2`, round 1, evaluation: idle: no validation examples"
    ], "once, though its fit had none to validate on either"
    assert record.accepted == ("0", "1", "2", "3"), "it trains on"
    want = expected(*pooled_predictions(trainer.result.model))
    assert {name: record.metrics[name] for name in want} == pytest.approx(
        {name: float(value) for name, value in want.items()}, abs=1e-6
    )
    assert "left out" not in caplog.text


def test_train_metrics_are_pooled(tmp_path):
    class Trains(Base):
        noted = []

        def __init__(self):
            super().__init__()
            self.acc, self.f1 = MulticlassAccuracy(CLASSES), MulticlassF1Score(CLASSES)

        def training_step(self, batch, _):
            logits = self(batch[0])
            self.noted.append((logits.detach(), batch[1]))
            self.acc(logits, batch[1])
            self.f1.update(logits, batch[1])
            self.log("train_acc", self.acc, on_step=True, on_epoch=True)
            return F.cross_entropy(logits, batch[1])

        def on_train_epoch_end(self):
            self.log("train_f1", self.f1.compute())
            self.f1.reset()

        def measure(self, logits, y):
            self.log("val_loss", F.cross_entropy(logits, y))

    trainer = run(tmp_path, Trains, evaluate=0.0)
    logits, y = (torch.cat(parts) for parts in zip(*Trains.noted, strict=True))
    accuracy = float(multiclass_accuracy(logits, y, CLASSES))
    assert trainer.callback_metrics["train_acc"] == pytest.approx(accuracy, abs=1e-6)
    assert trainer.callback_metrics["train_acc_epoch"] == trainer.callback_metrics["train_acc"]
    f1 = float(multiclass_f1_score(logits, y, CLASSES))
    assert trainer.callback_metrics["train_f1"] == pytest.approx(f1, abs=1e-6)


def test_vectors_wrappers_and_compositions_are_pooled_by_what_the_module_logs(tmp_path):
    class Wrapped(Base):
        def __init__(self):
            super().__init__()
            self.recall = MulticlassRecall(CLASSES, average=None)
            self.by_class = ClasswiseWrapper(MulticlassPrecision(CLASSES, average=None), prefix="precision_")
            self.sum = MulticlassPrecision(CLASSES) + MulticlassRecall(CLASSES)
            self.extremes = MinMaxMetric(MulticlassF1Score(CLASSES))

        def measure(self, logits, y):
            for metric in (self.recall, self.by_class, self.sum, self.extremes):
                metric.update(logits, y)

        def on_validation_epoch_end(self):
            self.log_dict({f"recall_{i}": value for i, value in enumerate(self.recall.compute())})
            self.log_dict(self.by_class.compute())
            self.log("sum", self.sum.compute())
            self.log("f1", self.extremes.compute()["raw"])

    # The server validates too: what its own metrics keep, such as extremes, is no part of the pool.
    held_out = DataLoader(TensorDataset(*VALIDATION_SET[1]), BATCH)
    trainer = run(tmp_path, Wrapped, central=held_out, max_rounds=2)
    logits, y = pooled_predictions(trainer.result.model)
    recall = multiclass_recall(logits, y, CLASSES, None)
    precision = multiclass_precision(logits, y, CLASSES, None)
    both = multiclass_precision(logits, y, CLASSES) + multiclass_recall(logits, y, CLASSES)
    want = {
        **{f"recall_{i}": recall[i] for i in range(CLASSES)},
        **{f"precision_{i}": precision[i] for i in range(CLASSES)},
        "sum": both,
        "f1": multiclass_f1_score(logits, y, CLASSES),
    }
    got = {name: trainer.callback_metrics[name] for name in want}
    assert got == pytest.approx({name: float(value) for name, value in want.items()}, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_a_client_whose_own_value_is_nan_still_counts(tmp_path):
    """A correlation over one example is NaN; its states are as good as any."""

    class Correlates(Base):
        noted = []

        def __init__(self):
            super().__init__()
            self.r = PearsonCorrCoef()

        def measure(self, logits, y):
            if self.current_client == 1:
                logits, y = logits[:1], y[:1]
            self.noted.append((logits[:, 0], y.float()))
            self.r(logits[:, 0], y.float())
            self.log("val_r", self.r)

    modules = [type(f"Client{i}", (Correlates,), {"current_client": i}) for i in range(4)]
    trainer = run(tmp_path, modules[0], client=app_of(modules), evaluate=0.0)
    scores, y = (torch.cat(parts) for parts in zip(*Correlates.noted, strict=True))
    want = torch.corrcoef(torch.stack([scores, y]))[0, 1]
    assert trainer.callback_metrics["val_r"] == pytest.approx(float(want), abs=1e-5)
    assert trainer.rounds[-1].accepted == ("0", "1", "2", "3")


def test_a_matrix_is_merged_and_hinders_nothing(tmp_path):
    class Matrix(LogsObjects):
        def __init__(self):
            super().__init__()
            self.matrix = MulticlassConfusionMatrix(CLASSES)

        def measure(self, logits, y):
            super().measure(logits, y)
            self.matrix.update(logits, y)

    trainer = run(tmp_path, Matrix)
    want = expected(*pooled_predictions(trainer.result.model))["val_acc"]
    assert trainer.callback_metrics["val_acc"] == pytest.approx(float(want), abs=1e-6)


def test_each_dataloader_has_metrics_and_a_loss_of_its_own(tmp_path):
    """The second one holds the training data, of which the clients have other amounts."""

    class TwoLoaders(Data):
        def val_dataloader(self):
            return [super().val_dataloader(), super().train_dataloader()]

    class Measures(Base):
        def __init__(self):
            super().__init__()
            self.f1 = nn.ModuleList([MulticlassF1Score(CLASSES), MulticlassF1Score(CLASSES)])

        def validation_step(self, batch, _, dataloader_idx=0):
            logits, y = self(batch[0]), batch[1]
            self.f1[dataloader_idx](logits, y)
            self.log("f1", self.f1[dataloader_idx])
            self.log("loss", F.cross_entropy(logits, y))

    trainer = run(tmp_path, Measures, client=client_app(Measures, TwoLoaders, DEVICE))
    for i, split in enumerate((VALIDATION_SET, TRAIN_SET)):
        logits, y = pooled_predictions(trainer.result.model, split=split)
        got = [trainer.callback_metrics[f"{name}/dataloader_idx_{i}"] for name in ("f1", "loss")]
        want = [multiclass_f1_score(logits, y, CLASSES), F.cross_entropy(logits, y)]
        assert got == pytest.approx([float(value) for value in want], abs=1e-6)


def test_clients_without_an_id_and_clients_by_registered_names_are_pooled(tmp_path):
    class Registered(LocalGrid):
        """As a deployment: nodes have names, or none, and no partition-id."""

        names = ()

        def __init__(self, *args):
            super().__init__(*args)
            for i, context in enumerate(self._contexts.values()):
                context.node_config.clear()
                context.node_config["which"] = i

        def get_nodes(self):
            nodes = list(self._contexts)
            return [
                SimpleNamespace(node_id=node, name=name) for node, name in zip(nodes, self.names, strict=True)
            ]

    class Named(Data):
        def __init__(self, context):
            L.LightningDataModule.__init__(self)
            self.client = int(context.node_config["which"])

    for names in (("oslo", "rome", "bonn", "lima"), ("", "", "", "")):
        grid = type("Grid", (Registered,), {"names": names})(client_app(LogsObjects, Named, DEVICE), 4)
        trainer = FederatedTrainer(max_rounds=1, enable_progress_bar=False, default_root_dir=tmp_path)
        trainer.fit(LogsObjects, grid)
        want = expected(*pooled_predictions(trainer.result.model))
        got = {name: trainer.callback_metrics[name] for name in want}
        assert got == pytest.approx({name: float(value) for name, value in want.items()}, abs=1e-6)
        assert {r.reason for r in trainer.rounds[-1].rejected} == {Reason.IDLE}


def test_the_progress_shows_the_pooled_values_and_who_is_idle(tmp_path):
    out = io.StringIO()
    progress = RoundProgressBar(Console(file=out, width=300, highlight=False))
    trainer = run(tmp_path, LogsObjects, callbacks=[progress], enable_progress_bar=True)
    names = ("val/MulticlassF1Score", "val/MulticlassRecall", "val_acc", "val_loss")
    line, idle, *_ = out.getvalue().splitlines()
    for name in names:
        assert f"{name} {trainer.callback_metrics[name]:.4g}" in line
    assert idle == "  client `2`, round 1, evaluation: idle: no validation examples"


def test_the_loggers_get_the_pooled_values(tmp_path):
    trainer = run(tmp_path, LogsObjects, logger=CSVLogger(tmp_path / "logs"))
    lines = next((tmp_path / "logs").rglob("metrics.csv")).read_text().splitlines()
    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(row["val_acc"]) == trainer.callback_metrics["val_acc"]


def test_the_servers_own_metrics_are_left_alone(tmp_path):
    """A validation on the server computes its own values, not those of clients on top."""
    held_out = DataLoader(TensorDataset(*VALIDATION_SET[1]), BATCH)
    trainer = run(tmp_path, LogsObjects, central=held_out)
    logits, y = pooled_predictions(trainer.result.model, [1])
    accuracy = float(multiclass_accuracy(logits, y, CLASSES, "micro"))
    assert trainer.callback_metrics["server_val_acc"] == pytest.approx(accuracy, abs=1e-6)


def test_every_order_of_arrival_gives_the_same_bits(tmp_path):
    def by_client(*order):
        def arrival(messages):
            return [messages[i] for i in order] if len(messages) == 4 else messages

        return arrival

    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)]
    records = [
        run(tmp_path / str(i), LogsValues, arrival=by_client(*order)).rounds for i, order in enumerate(orders)
    ]
    assert records[0] == records[1] == records[2]


def test_callbacks_can_monitor_a_pooled_value(tmp_path):
    f1 = "val/MulticlassF1Score"
    best = RoundCheckpoint(monitor=f1, mode="max", keep_last=1)
    trainer = run(tmp_path / "best", LogsObjects, max_rounds=3, callbacks=[best])
    values = [record.metrics[f1] for record in trainer.rounds]
    assert best.best_path.name == f"round-{values.index(max(values)) + 1:05d}"

    stopping = RoundEarlyStopping(f1, mode="max", patience=1, min_delta=2.0)
    trainer = run(tmp_path / "stop", LogsObjects, max_rounds=9, callbacks=[stopping])
    assert trainer.current_round == 2, "nothing improves by 2"


def test_the_trainer_and_its_callbacks_go_by_a_pooled_value(tmp_path):
    f1 = "val/MulticlassF1Score"
    best = RoundCheckpoint(keep_last=1)
    trainer = run(tmp_path, LogsObjects, max_rounds=3, callbacks=[best], monitor=f1, mode="max")
    values = [record.metrics[f1] for record in trainer.rounds]
    assert trainer.result.best_score == max(values)
    assert trainer.result.best_round == values.index(max(values)) + 1
    assert best.best_path.name == f"round-{trainer.result.best_round:05d}"


def test_two_clients_that_log_the_same_value_for_two_metrics_do_not_confuse_the_server(tmp_path):
    """Micro precision equals micro recall on every client and pooled: either may be meant."""
    Twins = only(("a", lambda: MulticlassPrecision(CLASSES, average="micro")))

    class ByValue(Twins):
        def __init__(self):
            super().__init__()
            self.b = MulticlassRecall(CLASSES, average="micro")

        def measure(self, logits, y):
            self.a.update(logits, y)
            self.b.update(logits, y)

        def on_validation_epoch_end(self):
            self.log("precision", self.a.compute())
            self.log("recall", self.b.compute())
            self.a.reset()
            self.b.reset()

    trainer = run(tmp_path, ByValue)
    accuracy = multiclass_accuracy(*pooled_predictions(trainer.result.model), CLASSES, "micro")
    for name in ("precision", "recall"):
        assert trainer.callback_metrics[name] == pytest.approx(float(accuracy), abs=1e-6)
