"""Metrics that measure the same thing share a chart, whatever they are called."""

import math

import pytest

from lightning_fl_ext.report.families import family_of, group_metrics
from lightning_fl_ext.server.record import RoundRecord


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("server_loss", "loss"),
        ("train/loss", "loss"),
        ("fit_train_loss", "loss"),
        ("val_loss/dataloader_idx_1", "loss"),
        ("val_acc", "accuracy"),
        ("ValAccuracy", "accuracy"),
        ("val_MulticlassF1Score", "f1"),
        ("bytes_up", "bytes"),
        ("net.gate/expected_open", "expected open"),
        ("gates_open", "gates open"),
        ("learning_rate", "learning rate"),
        ("server", "server"),
        ("precisely", "precisely"),
        ("---", "---"),
        ("", "(no name)"),
        ("  ", "(no name)"),
    ],
)
def test_a_name_tells_what_is_measured(name, family):
    assert family_of(name) == family


def test_families_come_in_the_order_people_ask_for_them(records):
    families = group_metrics(records)
    assert [family.title for family in families] == ["accuracy", "loss", "gates open", "bytes"]
    assert [family.better for family in families] == [1, -1, 0, 0]
    assert [family.is_bytes for family in families] == [False, False, False, True]


def test_what_the_server_measured_comes_first():
    record = RoundRecord(1, metrics={"a_loss": 1.0, "train_loss": 1.0, "val_loss": 1.0, "server_loss": 1.0})
    (family,) = group_metrics([record])
    assert [series.name for series in family.series] == ["server_loss", "val_loss", "a_loss", "train_loss"]
    assert [series.label for series in family.series] == ["server", "val", "a", "train"]


def test_values_that_are_missing_are_nan_and_metrics_without_any_are_left_out():
    rounds = [
        RoundRecord(1, metrics={"loss": 1.0, "odd": math.nan}),
        RoundRecord(2, metrics={"odd": math.inf}),
        RoundRecord(3, metrics={"loss": 0.5}),
    ]
    (family,) = group_metrics(rounds)
    assert str(family.series[0].values) == "(1.0, nan, 0.5)"


def test_no_round_gives_no_family():
    assert group_metrics([]) == []
