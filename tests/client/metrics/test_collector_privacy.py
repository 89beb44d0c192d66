"""Which metric states stay at home in real fits, and which are refused before the first batch."""

import pytest
import torch
from _sums import TRAIN, VALIDATION, LogsLargest, Sums, loader
from torchmetrics import CatMetric, RunningMean, SumMetric
from torchmetrics.classification import BinaryAUROC

from lightning_fl_ext import FlowerBridge
from lightning_fl_ext.metrics import ExampleStatesNotAllowed
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics


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
    told = StageMetrics.from_bytes(bridge.reply().content[METRIC_STATES]["validate"], client_id="0")
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
    class AlsoByValue(LogsLargest, Private):
        pass

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
    stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content[METRIC_STATES].items()}
    assert {stage: told.pack.excluded for stage, told in stages.items()} == {
        "train": ("trained",),
        "validate": ("trained",),
    }
    assert set(content["metrics"]) == {"val_sum", "num-examples"}
    assert "metric `trained` is logged in training and updated in validation too" in caplog.text

    bridge = bridge_of(module, "evaluate")
    kit.trainer(bridge).validate(module, loader(VALIDATION), verbose=False)
    told = StageMetrics.from_bytes(bridge.reply().content[METRIC_STATES]["validate"], client_id="0")
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
    told = StageMetrics.from_bytes(bridge.reply().content[METRIC_STATES]["validate"], client_id="0")
    assert told.pack.excluded == ("both", "other", "trained")


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
    stages = {s: StageMetrics.from_bytes(b, client_id="0") for s, b in content[METRIC_STATES].items()}
    return stages, {}, dict(content["metrics"])
