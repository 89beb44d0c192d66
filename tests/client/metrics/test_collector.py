"""Metric states in real fits: whose they are, under which names, and when there are none."""

from pathlib import Path

import pytest
import torch
from _scripts import run_script
from _sums import TRAIN, VALIDATION, LogsLargest, Sums, loader
from torchmetrics import SumMetric

from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics


class Ratio(SumMetric):
    def compute(self):
        return self.sum_value / self.sum_value


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

    class Mixed(LogsLargest, Sums):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("scalar", batch[0].mean())

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
    told = StageMetrics.from_bytes(bridge.reply().content[METRIC_STATES]["test"], client_id="0")
    assert told.names == {"test_sum": ("seen",)}
    assert told.pack.num_examples == 5


def test_states_follow_the_evaluation_before_the_reply(kit, bridge_of):
    """A bridge used for two evaluations answers with the second."""
    module = Sums()
    bridge = bridge_of(module, "evaluate")
    for values in (VALIDATION, VALIDATION[:3]):
        kit.trainer(bridge).validate(module, loader(values), verbose=False)
    told = StageMetrics.from_bytes(bridge.reply().content[METRIC_STATES]["validate"], client_id="0")
    assert float(told.pack.metrics["seen"].states["sum_value"]) == 60.0


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
    assert {name: told[:2] for name, told in stages["validate"].scalars.items()} == {
        "errors_0": ("sum", 5),
        "errors_1": ("sum", 3),
        "largest/dataloader_idx_0": ("max", 5),
        "largest/dataloader_idx_1": ("max", 3),
        "loss/dataloader_idx_0": ("mean", 5),
        "loss/dataloader_idx_1": ("mean", 3),
        "smallest": ("min", 8),
    }


# Several processes


def test_two_processes_pool_to_what_one_does():
    script = Path(__file__).with_name("_collector_processes.py")
    one, two = run_script(script, "auto", "ddp_fork").values()
    names = {"val_acc", "val_f1", "val_r", "val_loss", "other_loss"}
    for kind in ("train", "evaluate"):
        assert set(one[kind]) == {"examples", *names, *(f"examples of {name}" for name in names)}
        assert two[kind] == pytest.approx(one[kind], abs=1e-6), kind
        counts = [one[kind][name] for name in ("examples", "examples of val_loss", "examples of other_loss")]
        assert counts == [48, 40, 8]
    assert one["evaluate"]["val_f1"] != one["evaluate"]["val_acc"]
