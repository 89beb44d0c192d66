"""How the model does at each site: kept in the record and the ledger, told across sites, or not told."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from _pooling import (
    DEVICE,
    TRAIN_SET,
    VALIDATION,
    VALIDATION_SET,
    WARNINGS,
    Base,
    Data,
    LogsObjects,
    LogsValues,
    app_of_apps,
    pooled_predictions,
    run,
)
from torch.utils.data import DataLoader, TensorDataset

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LightningFLError,
    LocalGrid,
    RoundCheckpoint,
    RoundLedger,
    SecureFedAvg,
    client_app,
    verify_ledger,
)
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES, StageMetrics
from lightning_fl_ext.report import read_history
from lightning_fl_ext.server.metrics.sites import across_sites
from lightning_fl_ext.server.record import RoundRecord, SiteEvaluation
from lightning_fl_ext.server.screening.limits import Limits

pytestmark = WARNINGS
MODULES = [LogsObjects, LogsValues]


def own_values(trainer, client):
    logits, y = pooled_predictions(trainer.result.model, [client])
    return float((logits.argmax(1) == y).float().mean()), float(F.cross_entropy(logits, y))


@pytest.mark.parametrize("module", MODULES)
def test_each_site_has_its_own_values_in_the_record_the_ledger_and_the_history(tmp_path, module):
    trainer = run(tmp_path, module, callbacks=[RoundLedger(), RoundCheckpoint()])
    sites = trainer.rounds[-1].sites
    assert list(sites) == ["0", "1", "3"]  # client 2 has nothing to evaluate on
    for client, site in sites.items():
        assert site.num_examples == VALIDATION[int(client)]
        accuracy, loss = own_values(trainer, int(client))
        assert site.metrics["val_acc"] == pytest.approx(accuracy, abs=1e-6)
        assert site.metrics["val_loss"] == pytest.approx(loss, abs=1e-6)
    assert verify_ledger(tmp_path).ok
    assert read_history(tmp_path).rounds[-1] == trainer.rounds[-1]
    again = FederatedTrainer(1, ExactFedAvg(), default_root_dir=tmp_path, enable_progress_bar=False)
    resumed = again.fit(module, LocalGrid(client_app(module, Data, DEVICE), 4), ckpt_path="last")
    assert resumed.rounds[-1].sites == sites


def test_a_record_without_evaluations_is_written_as_it_always_was():
    record = RoundRecord(1, ("a",), ("a",), metrics={"train_loss": 0.5})
    assert "sites" not in record.to_json()
    assert RoundRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    told = RoundRecord(1, sites={"b": SiteEvaluation(3), "a": SiteEvaluation(2, {"f1": 0.5})})
    assert RoundRecord.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_a_value_that_is_no_number_is_written_as_json_has_it_and_is_the_worst():
    sites = {c: SiteEvaluation(3, {"f1": v}) for c, v in zip("abc", (0.5, math.nan, math.inf), strict=True)}
    written = json.dumps(RoundRecord(1, sites=sites).to_json(), allow_nan=False)
    again = RoundRecord.from_json(json.loads(written)).sites
    assert [str(site.metrics["f1"]) for site in again.values()] == ["0.5", "nan", "inf"]
    some = {"a": sites["a"], "b": sites["b"], "d": SiteEvaluation(3, {"f1": 0.25})}
    for order in ("adb", "bad", "dba"):
        told = across_sites({c: some[c] for c in order}, {"f1": "max"})
        assert [str(v) for v in told.values()] == ["nan", "0.5", "nan"]
    assert {str(v) for v in across_sites({"b": sites["b"]}, {"f1": "min"}).values()} == {"nan"}


def silent(module):
    """Apps of four clients, of which client 1 tells none of its own values."""
    return app_of_apps([client_app(module, Data, DEVICE, share_metrics=c != 1) for c in range(4)])


@pytest.mark.parametrize("module", MODULES)
def test_a_site_that_keeps_its_values_counts_in_the_pooled_ones_to_the_bit(tmp_path, module):
    sent = []

    def watch(instruction, reply):
        if reply.has_content() and reply.content["client"]["client-id"] == "1" and "metrics" in reply.content:
            states = reply.content.get(METRIC_STATES, {})
            sent.append((dict(reply.content["metrics"]), dict(states.items())))
        return reply

    open_run = run(tmp_path / "open", module, max_rounds=2)
    closed = run(tmp_path / "closed", module, max_rounds=2, client=silent(module), faults=watch)
    assert closed.result.digest == open_run.result.digest
    for ours, theirs in zip(closed.rounds, open_run.rounds, strict=True):
        names = theirs.metrics.keys() - {"bytes_up"}
        assert {n: ours.metrics[n] for n in names} == {n: theirs.metrics[n] for n in names}
        assert ours.rejected == theirs.rejected
        assert ours.sites["1"] == SiteEvaluation(VALIDATION[1])
        assert {c: s for c, s in ours.sites.items() if c != "1"} == {
            c: s for c, s in theirs.sites.items() if c != "1"
        }
    assert len(sent) == 4
    for numbers, states in sent:
        assert numbers.keys() == {"num-examples"}
        if "validate" in states:
            told = StageMetrics.from_bytes(states["validate"], client_id="1").scalars
            assert told["val_loss"].total is not None
            if module is LogsObjects:  # what it logs as an object is in the states alone
                assert {name for name, scalar in told.items() if scalar.total is not None} == {"val_loss"}


def test_an_average_names_the_site_that_keeps_its_value(tmp_path):
    trainer = run(tmp_path, LogsObjects, client=silent(LogsObjects), average_metrics=("acc",))
    told = [(s.num_examples, s.metrics["val_acc"]) for c, s in trainer.rounds[-1].sites.items() if c != "1"]
    mean = sum(n * value for n, value in told) / sum(n for n, _ in told)
    assert trainer.callback_metrics["val_acc"] == pytest.approx(mean)
    assert [(r.client_id, r.key, r.got) for r in trainer.rounds[-1].rejected if r.reason == "odd-metric"] == [
        ("1", "val_acc", "kept by the client")
    ]


def test_a_server_that_pools_nothing_gets_no_value_of_a_site_that_keeps_them():
    from flwr.app import ConfigRecord, RecordDict

    from lightning_fl_ext.wire import to_record

    app = client_app(LogsObjects, Data, DEVICE, share_metrics=False)
    weights = {name: tensor.numpy() for name, tensor in LogsObjects().state_dict().items()}
    grid = LocalGrid(app, 4)
    content = RecordDict({"arrays": to_record(weights), "config": ConfigRecord({"server-round": 1})})
    message = grid.create_message(content, "evaluate", next(iter(grid.get_node_ids())), "1")
    (reply,) = grid.send_and_receive([message])
    assert reply.content["metrics"].keys() == {"num-examples"}
    assert METRIC_STATES not in reply.content


def test_under_masks_a_site_that_keeps_its_values_is_in_the_sum(tmp_path):
    class Lit(LogsObjects):
        def measure(self, logits, y):
            self.log("val_loss", F.cross_entropy(logits, y))

    class Same(Data):
        val_dataloader = Data.train_dataloader

    def fit(name, **options):
        client = client_app(Lit, Same, DEVICE, **options)
        return run(tmp_path / name, Lit, client=client, strategy=SecureFedAvg(threshold=0.6))

    open_run, closed = fit("open"), fit("closed", share_metrics=False)
    assert closed.callback_metrics["val_loss"] == pytest.approx(
        open_run.callback_metrics["val_loss"], rel=1e-12
    )
    assert not closed.rounds[-1].sites


def test_the_worst_the_best_and_the_spread_are_metrics_to_go_by(tmp_path):
    asked = {"val_acc": "max", "val_loss": "min"}
    trainer = run(tmp_path, LogsObjects, max_rounds=2, site_metrics=asked, monitor="val_loss/worst")
    record = trainer.rounds[-1]
    for name, worst in (("val_acc", min), ("val_loss", max)):
        values = [site.metrics[name] for site in record.sites.values()]
        assert record.metrics[f"{name}/worst"] == worst(values)
        assert record.metrics[f"{name}/best"] == (max if worst is min else min)(values)
        assert record.metrics[f"{name}/spread"] == max(values) - min(values)
    assert trainer.callback_metrics["val_loss/worst"] == record.metrics["val_loss/worst"]
    assert trainer.result.best_score == min(r.metrics["val_loss/worst"] for r in trainer.rounds)


def test_no_client_can_bring_a_metric_of_that_name(tmp_path):
    class Lying(LogsObjects):
        def measure(self, logits, y):
            super().measure(logits, y)
            self.log("val_acc/worst", torch.tensor(9.0))

    trainer = run(tmp_path, Lying, site_metrics={"val_acc": "max"})
    assert trainer.rounds[-1].metrics["val_acc/worst"] < 1
    assert any("val_acc/worst" in r.key for r in trainer.rounds[-1].rejected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site_metrics": {"val_f2": "max"}}, "no site tells `val_f2`; the sites tell .*'val_acc'"),
        ({"site_metrics": {"val_acc": "max"}, "evaluate": 0.0}, "no site tells `val_acc`; no site tells any"),
    ],
)
def test_what_no_site_tells_ends_the_run_after_the_first_round(tmp_path, options, message):
    with pytest.raises(LightningFLError, match=message):
        run(tmp_path, LogsObjects, max_rounds=3, **options)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"val_f1": "best"}, ValueError, r"`site_metrics\['val_f1'\]` must be 'min' or 'max'"),
        (["val_f1"], TypeError, "`site_metrics` must be a dict"),
    ],
)
def test_other_arguments_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        FederatedTrainer(site_metrics=given)
    with pytest.raises(TypeError, match="`share_metrics` must be True or False"):
        client_app(Base, Data, share_metrics="no")


def test_a_record_keeps_the_foremost_metrics_of_sites_and_those_asked_for(tmp_path):
    trainer = run(
        tmp_path, LogsObjects, limits=Limits(site_metrics=1), site_metrics={"val/MulticlassRecall": "max"}
    )
    kept = {name for site in trainer.rounds[-1].sites.values() for name in site.metrics}
    assert kept == {"val/MulticlassF1Score", "val/MulticlassRecall"}


# The final model, tested


class Judged(LogsObjects):
    def test_step(self, batch, batch_idx):
        logits, y = self(batch[0]), batch[1]
        self.acc(logits, y)
        self.log("test_acc", self.acc)
        self.log("test_loss", F.cross_entropy(logits, y))


class Halves(Data):
    def test_dataloader(self):
        return DataLoader(TensorDataset(*TRAIN_SET[self.client]), 8)


def fit_and_test(tmp_path, module, data, test, **options):
    trainer = FederatedTrainer(
        **{
            "max_rounds": 1,
            "strategy": ExactFedAvg(fraction_evaluate=0.0),
            "enable_progress_bar": False,
            "default_root_dir": tmp_path,
            "callbacks": [RoundLedger()],
            **options,
        }
    )
    trainer.fit(module, LocalGrid(client_app(module, data, DEVICE), 4), test=test)
    return trainer


def test_the_final_model_is_tested_on_all_clients_whatever_share_evaluates(tmp_path):
    trainer = fit_and_test(tmp_path, Judged, Halves, True)
    logits, y = pooled_predictions(trainer.result.model, split=TRAIN_SET)
    tested = trainer.result.test
    assert tested.metrics["test_acc"] == pytest.approx(
        float((logits.argmax(1) == y).float().mean()), abs=1e-6
    )
    assert tested.metrics["test_loss"] == pytest.approx(float(F.cross_entropy(logits, y)), abs=1e-6)
    assert [site.num_examples for site in tested.sites.values()] == [len(y) for _, y in TRAIN_SET]
    assert tested.digest == trainer.result.digest
    assert trainer.callback_metrics["test_acc"] == tested.metrics["test_acc"]
    assert not trainer.rounds[-1].sites
    assert trainer.strategy.fraction_evaluate == 0.0
    assert verify_ledger(tmp_path).finished
    assert read_history(tmp_path).test == tested
    assert read_history(tmp_path).rounds[-1] == trainer.rounds[-1]


def test_the_server_tests_it_on_its_own_data_besides(tmp_path):
    loader = DataLoader(TensorDataset(*VALIDATION_SET[0]), 8)
    trainer = fit_and_test(tmp_path, Judged, Halves, loader)
    accuracy, loss = own_values(trainer, 0)
    assert trainer.result.test.metrics["server_test_acc"] == pytest.approx(accuracy, abs=1e-6)
    assert trainer.result.test.metrics["server_test_loss"] == pytest.approx(loss, abs=1e-6)
    again = FederatedTrainer(enable_progress_bar=False, default_root_dir=tmp_path / "again")
    grid = LocalGrid(client_app(Judged, Halves, DEVICE), 4)
    alone = again.test(trainer.result.model, grid, lambda model: {"x": 0.5})
    assert alone["test_acc"] == trainer.result.test.metrics["test_acc"]
    assert alone["server_x"] == 0.5


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (LogsObjects, Halves, "all 4 clients asked failed. One of them: .*has no `test_step`"),
        (Judged, Data, "all 4 clients asked failed. One of them: .*which has no `test_dataloader`"),
        (Judged, lambda context: Data(context).train_dataloader(), "`data` gives DataLoader, which has no"),
    ],
)
def test_what_cannot_be_tested_is_refused_and_says_what_is_missing(tmp_path, module, data, message):
    with pytest.raises(LightningFLError, match=message):
        fit_and_test(tmp_path, module, data, True)


def test_the_run_refuses_a_test_that_is_none_before_the_first_round(tmp_path):
    with pytest.raises(TypeError, match="`test` must be a function of the module, or data to test on"):
        fit_and_test(tmp_path, Judged, Halves, "data")
