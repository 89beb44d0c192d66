"""Metric states in real fits: whose they are, under which names, and when there are none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import CatMetric, MaxMetric, RunningMean, SumMetric
from torchmetrics.classification import BinaryAUROC

from lightning_fl_ext import FlowerBridge
from lightning_fl_ext.metrics import ExampleStatesNotAllowed
from lightning_fl_ext.metrics.stage import ASK, StageMetrics
from lightning_fl_ext.server.pooling import pool_metrics

TRAIN, VALIDATION = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.tensor([10.0, 20, 30, 40, 50])


class Sums(L.LightningModule):
    """Its metrics are sums of the data, so that what they have seen can be read off them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = SumMetric()
        self.trained = SumMetric()

    def training_step(self, batch, _):
        self.trained(batch[0])
        self.log("train_sum", self.trained, on_step=False, on_epoch=True)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen(batch[0])
        self.log("val_sum", self.seen)

    def test_step(self, batch):
        self.seen(batch[0])
        self.log("test_sum", self.seen)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Ratio(SumMetric):
    def compute(self):
        return self.sum_value / self.sum_value


def loader(values):
    return DataLoader(TensorDataset(values), 2)


@pytest.fixture
def bridge_of(kit):
    def make(module, kind="train", ask=True, **options):
        message = kit.message(kit.arrays_of(module), kind)
        if ask:
            message.content["config"][ASK] = True
        return FlowerBridge.from_message(message, kit.context(), **options)

    return make


@pytest.fixture
def fit(kit, bridge_of):
    """Fit and read the reply: stages by name, the pooled values, and the plain metrics."""

    def run(module, val=(VALIDATION,), ask=True, bridge=None, **options):
        bridge = bridge or bridge_of(module, ask=ask)
        loaders = [loader(values) for values in val]
        kit.trainer(bridge, **{"num_sanity_val_steps": 0, **options}).fit(module, loader(TRAIN), loaders)
        content = bridge.reply().content
        stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content.get(ASK, {}).items()}
        values, left_out = pool_metrics(type(module)(), {"0": stages}, 1)
        assert not left_out
        return stages, values, dict(content["metrics"])

    return run


def test_train_and_validation_states_are_those_of_the_last_epoch(fit):
    stages, values, _ = fit(Sums(), max_epochs=2)
    assert values == {"train_sum": 21.0, "val_sum": 150.0}
    assert {s: told.pack.num_examples for s, told in stages.items()} == {"train": 6, "validate": 5}


def test_without_being_asked_nothing_is_added(fit, kit):
    module = Sums()
    stages, _, metrics = fit(module, ask=False)
    assert stages == {}
    assert metrics == {"train_sum": 21.0, "val_sum": 150.0, "num-examples": 6}


def test_the_sanity_check_takes_no_part(fit):
    _, values, _ = fit(Sums(), num_sanity_val_steps=2)
    assert values["val_sum"] == 150.0


def test_a_sanity_check_alone_is_no_validation(fit):
    stages, _, _ = fit(Sums(), num_sanity_val_steps=2, limit_train_batches=1, check_val_every_n_epoch=5)
    assert set(stages) == {"train"}


def test_a_validation_in_the_middle_of_an_epoch_leaves_the_train_metrics_out(fit):
    stages, values, _ = fit(Sums(), val_check_interval=2)
    assert values == {"train_sum": 21.0, "val_sum": 150.0}
    updates = {stage: {n: m.updates for n, m in told.pack.metrics.items()} for stage, told in stages.items()}
    assert updates == {"train": {"seen": 0, "trained": 3}, "validate": {"seen": 3, "trained": 0}}


def test_a_metric_that_is_never_reset_is_sent_as_it_is_logged(fit):
    class Grows(Sums):
        def validation_step(self, batch, _):
            self.seen.update(batch[0])

        def on_validation_epoch_end(self):
            self.log("val_sum", self.seen.compute())

    stages, values, _ = fit(Grows(), max_epochs=2)
    assert values["val_sum"] == 300.0
    assert stages["train"].pack.metrics["seen"].updates == 0, "it is no metric of the training"


def test_a_metric_reset_when_the_next_validation_starts_is_sent_as_it_is_logged(fit):
    class ResetsLate(Sums):
        def on_validation_epoch_start(self):
            self.seen.reset()

        def validation_step(self, batch, _):
            self.seen.update(batch[0])

        def on_validation_epoch_end(self):
            self.log("val_sum", self.seen.compute())

    _, values, _ = fit(ResetsLate(), max_epochs=3)
    assert values["val_sum"] == 150.0


def test_names_of_several_dataloaders_are_the_modules(fit):
    stages, values, metrics = fit(Sums(), val=(VALIDATION, VALIDATION[:1]))
    names = {"val_sum/dataloader_idx_0", "val_sum/dataloader_idx_1"}
    assert set(stages["validate"].names) == names == {name for name in metrics if "val_sum" in name}
    assert values["val_sum/dataloader_idx_0"] == 160.0, "one metric object that saw both"


def test_each_dataloader_may_have_a_metric_of_its_own(fit):
    class TwoMetrics(Sums):
        def __init__(self):
            super().__init__()
            self.other = SumMetric()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            (self.other if dataloader_idx else self.seen).update(batch[0])

        def on_validation_epoch_end(self):
            self.log_dict({"first": self.seen.compute(), "second": self.other.compute()})

    _, values, _ = fit(TwoMetrics(), val=(VALIDATION, VALIDATION[:3]))
    assert values == {"train_sum": 21.0, "first": 150.0, "second": 60.0}


def test_a_value_that_is_nan_is_found_and_not_sent(fit):
    class Undefined(Sums):
        def __init__(self):
            super().__init__()
            self.ratio = Ratio()

        def validation_step(self, batch, batch_idx):
            self.ratio.update(0 * batch[0])

        def on_validation_epoch_end(self):
            self.log("val_ratio", self.ratio.compute())

    stages, _, metrics = fit(Undefined())
    assert stages["validate"].names == {"val_ratio": ("ratio",)}
    assert "val_ratio" not in metrics


def test_a_value_is_found_whatever_the_module_computes_besides(fit):
    """Two metrics, one of them logged by value, one as an object; a scalar that is neither."""

    class Mixed(Sums):
        def __init__(self):
            super().__init__()
            self.largest = MaxMetric()

        def validation_step(self, batch, _):
            super().validation_step(batch, _)
            self.largest.update(batch[0])
            self.log("scalar", batch[0].mean())

        def on_validation_epoch_end(self):
            self.log("val_max", self.largest.compute())
            self.largest.reset()

    stages, values, _ = fit(Mixed())
    assert stages["validate"].names == {"val_sum": ("seen",), "val_max": ("largest",)}
    assert set(stages["validate"].scalars) == {"val_sum", "val_max", "scalar"}
    assert values["val_max"] == 50.0


def test_the_modules_own_values_are_what_they_are_without_the_bridge(kit, fit):
    plain = kit.trainer(num_sanity_val_steps=0, max_epochs=2)
    plain.fit(Sums(), loader(TRAIN), loader(VALIDATION))
    _, _, metrics = fit(Sums(), max_epochs=2)
    assert {k: float(v) for k, v in plain.callback_metrics.items()} | {"num-examples": 6} == metrics


def test_a_test_has_a_stage_of_its_own(kit, bridge_of):
    module = Sums()
    bridge = bridge_of(module, "evaluate")
    kit.trainer(bridge).test(module, loader(VALIDATION), verbose=False)
    told = StageMetrics.from_bytes(bridge.reply().content[ASK]["test"], client_id="0")
    assert told.names == {"test_sum": ("seen",)}
    assert told.pack.num_examples == 5


def test_states_follow_the_evaluation_before_the_reply(kit, bridge_of):
    """A bridge used for two evaluations answers with the second."""
    module = Sums()
    bridge = bridge_of(module, "evaluate")
    for values in (VALIDATION, VALIDATION[:3]):
        kit.trainer(bridge).validate(module, loader(values), verbose=False)
    told = StageMetrics.from_bytes(bridge.reply().content[ASK]["validate"], client_id="0")
    assert float(told.pack.metrics["seen"].states["sum_value"]) == 60.0


def test_rows_of_examples_are_refused_before_the_first_batch(kit, bridge_of):
    class Exact(Sums):
        def __init__(self):
            super().__init__()
            self.auroc = BinaryAUROC()

        def training_step(self, batch, _):
            raise AssertionError("a batch was trained on")

    module = Exact()
    with pytest.raises(ExampleStatesNotAllowed, match=r'allow_example_states=\("auroc",\)'):
        kit.trainer(bridge_of(module)).fit(module, loader(TRAIN), loader(VALIDATION))
    unasked = kit.trainer(bridge_of(module, ask=False), num_sanity_val_steps=0)
    with pytest.raises(AssertionError, match="a batch was trained on"):
        unasked.fit(module, loader(TRAIN), loader(VALIDATION))
    allowed = bridge_of(module, allow_example_states=("auroc",))
    with pytest.raises(AssertionError, match="a batch was trained on"):
        kit.trainer(allowed, num_sanity_val_steps=0).fit(module, loader(TRAIN), loader(VALIDATION))


class Late(Sums):
    """Builds a metric that keeps rows when a run begins."""

    def setup(self, stage):
        self.late = BinaryAUROC()

    def training_step(self, batch, _):
        assert self.late._update_count == 0
        return super().training_step(batch, _)

    def validation_step(self, batch, _):
        super().validation_step(batch, _)
        self.late.update(batch[0] / 100, (batch[0] > 20).long())
        self.log("val_auroc", self.late)


@pytest.mark.parametrize("option", ["allow_example_states", "exclude_metrics"])
def test_what_is_said_of_metrics_holds_for_those_built_in_setup(kit, bridge_of, option):
    module = Late()
    bridge = bridge_of(module, **{option: ("late",)})
    kit.trainer(bridge, num_sanity_val_steps=0).fit(module, loader(TRAIN), loader(VALIDATION))
    told = StageMetrics.from_bytes(bridge.reply().content[ASK]["validate"], client_id="0")
    sent = {"seen", "trained"} if option == "exclude_metrics" else {"seen", "trained", "late"}
    assert set(told.pack.metrics) == sent
    assert ("val_auroc" in bridge.reply().content["metrics"]) == ("late" in sent)


def test_metrics_built_in_setup_are_refused_before_the_first_batch(kit, bridge_of):
    class Strict(Late):
        def training_step(self, batch, _):
            raise AssertionError("a batch was trained on")

    module = Strict()
    with pytest.raises(ExampleStatesNotAllowed, match="`late`"):
        kit.trainer(bridge_of(module)).fit(module, loader(TRAIN), loader(VALIDATION))


def test_an_evaluation_without_batches_is_refused_as_well(kit, bridge_of):
    """So that the clients of a federation agree, whether they have data or not."""
    module = Sums()
    module.auroc = BinaryAUROC()
    with pytest.raises(ExampleStatesNotAllowed, match="`auroc`"):
        kit.trainer(bridge_of(module, "evaluate")).validate(module, loader(VALIDATION[:0]), verbose=False)


# What is left out by name


class Private(Sums):
    """Logs a metric that cannot be merged in every way: as an object on steps and epochs, and by value."""

    def __init__(self):
        super().__init__()
        self.smooth = RunningMean(window=2)
        self.rows = CatMetric()

    def training_step(self, batch, _):
        self.smooth(batch[0])
        self.log("train_smooth", self.smooth, on_step=True, on_epoch=True)
        return super().training_step(batch, _)

    def validation_step(self, batch, _):
        super().validation_step(batch, _)
        self.rows.update(batch[0])

    def on_validation_epoch_end(self):
        self.log_dict({"last_row": self.rows.compute()[-1] + 0.5, "rows": self.rows.compute().sum()})
        self.log("one", torch.tensor(1.0))
        self.rows.reset()


def test_neither_states_nor_values_of_what_is_left_out_are_sent(fit, bridge_of):
    class AlsoByValue(Private):
        def __init__(self):
            super().__init__()
            self.largest = MaxMetric()

        def validation_step(self, batch, _):
            super().validation_step(batch, _)
            self.largest.update(batch[0])

        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            self.log("val_max", self.largest.compute())
            self.largest.reset()

    module = AlsoByValue()
    bridge = bridge_of(module, exclude_metrics=("smooth", "rows", "largest"))
    stages, values, metrics = fit(module, bridge=bridge)
    assert values == {"train_sum": 21.0, "val_sum": 150.0}
    assert {name for told in stages.values() for name in told.pack.metrics} == {"seen", "trained"}
    assert set(metrics) == {"train_sum", "val_sum", "one", "last_row", "rows", "num-examples"}
    assert stages["validate"].pack.excluded == ("largest", "rows", "smooth")


def test_a_value_that_may_be_of_an_excluded_metric_or_of_another_is_pooled_and_not_sent(fit, bridge_of):
    class Twins(Sums):
        def __init__(self):
            super().__init__()
            self.twin = SumMetric()

        def validation_step(self, batch, _):
            self.seen.update(batch[0])
            self.twin.update(batch[0])

        def on_validation_epoch_end(self):
            self.log("val_sum", self.seen.compute())
            self.seen.reset()
            self.twin.reset()

    module = Twins()
    stages, values, metrics = fit(module, bridge=bridge_of(module, exclude_metrics=("twin",)))
    assert stages["validate"].names == {"val_sum": ("seen", "twin")}
    assert values["val_sum"] == 150.0
    assert "val_sum" not in metrics


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exclude_metrics": "acc"}, TypeError, r'`exclude_metrics=\("acc",\)`'),
        ({"allow_example_states": "acc"}, TypeError, r'`allow_example_states=\("acc",\)`'),
        ({"min_examples": -1}, ValueError, "`min_examples` must be a whole number, not negative. Got -1"),
        ({"min_examples": "5"}, ValueError, "`min_examples` must be a whole number, not negative. Got '5'"),
    ],
)
def test_wrong_arguments_are_refused_when_the_bridge_is_made(options, error, message):
    with pytest.raises(error, match=message):
        FlowerBridge(**options)


def test_a_misspelt_exclusion_is_refused_before_the_first_batch(kit, bridge_of):
    module = Sums()
    with pytest.raises(ValueError, match=r"`exclude_metrics` names `val_sum`.*metrics: `seen`, `trained`"):
        kit.trainer(bridge_of(module, exclude_metrics=("val_sum",))).fit(module, loader(TRAIN), loader(TRAIN))


# What would be wrong


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric SumMetric was called before")
def test_one_object_for_training_and_validation_is_left_out_of_a_fit_with_a_warning(kit, bridge_of, caplog):
    """Lightning resets it with the validation's results, in the middle of the training epoch."""

    class Shares(Sums):
        def validation_step(self, batch, _):
            super().validation_step(batch, _)
            self.trained(batch[0])
            self.log("val_same", self.trained)

    module = Shares()
    bridge = bridge_of(module)
    kit.trainer(bridge, num_sanity_val_steps=0).fit(module, loader(TRAIN), loader(VALIDATION))
    content = bridge.reply().content
    stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content[ASK].items()}
    assert {stage: told.pack.excluded for stage, told in stages.items()} == {
        "train": ("trained",),
        "validate": ("trained",),
    }
    assert set(content["metrics"]) == {"val_sum", "num-examples"}
    assert "metric `trained` is logged in training and updated in validation too" in caplog.text

    bridge = bridge_of(module, "evaluate")
    kit.trainer(bridge).validate(module, loader(VALIDATION), verbose=False)
    told = StageMetrics.from_bytes(bridge.reply().content[ASK]["validate"], client_id="0")
    assert not told.pack.excluded, "in a validation alone there is nothing to mix with"


def test_a_composition_of_what_training_and_validation_share_is_left_out_whole(kit, bridge_of):
    class SharesAPart(Sums):
        def __init__(self):
            super().__init__()
            self.other = SumMetric()
            self.both = self.trained + self.other

        def validation_step(self, batch, _):
            super().validation_step(batch, _)
            self.trained.update(batch[0])
            self.other.update(batch[0])

    module = SharesAPart()
    bridge = bridge_of(module)
    kit.trainer(bridge, num_sanity_val_steps=0).fit(module, loader(TRAIN), loader(VALIDATION))
    told = StageMetrics.from_bytes(bridge.reply().content[ASK]["validate"], client_id="0")
    assert told.pack.excluded == ("both", "other", "trained")


def test_metrics_in_a_plain_dict_are_warned_of_once(kit, bridge_of, caplog):
    class Hides(Sums):
        def __init__(self):
            super().__init__()
            self.hidden_sums = {"val": SumMetric()}

    module = Hides()
    for _ in range(2):
        kit.trainer(bridge_of(module)).fit(module, loader(TRAIN), loader(VALIDATION))
    assert caplog.text.count("`hidden_sums` of Hides holds metrics in a plain list or dict") == 1


# How scalars are told


def test_scalars_tell_their_reduction_and_the_examples_of_their_dataloader(fit):
    class Scalars(Sums):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("loss", batch[0].mean())
            self.log("largest", batch[0].max(), reduce_fx="max")
            self.log(f"errors_{dataloader_idx}", batch[0].sum(), reduce_fx="sum", add_dataloader_idx=False)

        def on_validation_epoch_end(self):
            self.log("smallest", torch.tensor(1.0), reduce_fx="min")

    stages, _, _ = fit(Scalars(), val=(VALIDATION, VALIDATION[:3]))
    assert stages["validate"].pack.num_examples == 8
    assert stages["validate"].scalars == {
        "errors_0": ("sum", 5),
        "errors_1": ("sum", 3),
        "largest/dataloader_idx_0": ("max", 5),
        "largest/dataloader_idx_1": ("max", 3),
        "loss/dataloader_idx_0": ("mean", 5),
        "loss/dataloader_idx_1": ("mean", 3),
        "smallest": ("min", 8),
    }


def test_a_small_stage_keeps_the_values_of_its_last_step_too(kit, bridge_of):
    class OnSteps(Sums):
        def training_step(self, batch, _):
            loss = super().training_step(batch, _)
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log("train_largest", self.trained, on_step=True, on_epoch=True)
            return loss

    module = OnSteps()
    bridge = bridge_of(module, min_examples=7)
    kit.trainer(bridge).fit(module, loader(TRAIN), loader(VALIDATION))
    assert {"loss_step", "train_largest_step"} <= set(bridge.results[-1].metrics), "in the fit they are there"
    assert set(bridge.reply().content["metrics"]) == {"num-examples"}


@pytest.mark.parametrize(("least", "withheld"), [(5, False), (6, True)])
def test_a_stage_with_too_few_examples_stays_at_home(bridge_of, fit, least, withheld):
    module = Sums()
    stages, _, metrics = _withheld(fit, module, bridge_of(module, min_examples=least), withheld)
    assert stages["validate"].pack.withheld is withheld
    assert not stages["train"].pack.withheld
    assert ("val_sum" in metrics) is not withheld
    assert "train_sum" in metrics


def _withheld(fit, module, bridge, withheld):
    if not withheld:
        return fit(module, bridge=bridge)
    with pytest.raises(AssertionError):  # the pool says who is missing
        fit(module, bridge=bridge)
    content = bridge.reply().content
    stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content[ASK].items()}
    return stages, {}, dict(content["metrics"])


# Several processes

SCRIPT = Path(__file__).with_name("_pooling_processes.py")


def run(*strategies):
    root = str(SCRIPT.parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *strategies],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def test_two_processes_pool_to_what_one_does():
    one, two = run("auto", "ddp_fork").values()
    names = {"val_acc", "val_f1", "val_r", "val_loss", "other_loss"}
    for kind in ("train", "evaluate"):
        assert set(one[kind]) == {"examples", *names, *(f"examples of {name}" for name in names)}
        assert two[kind] == pytest.approx(one[kind], abs=1e-6), kind
        counts = [one[kind][name] for name in ("examples", "examples of val_loss", "examples of other_loss")]
        assert counts == [48, 40, 8]
    assert one["evaluate"]["val_f1"] != one["evaluate"]["val_acc"]
