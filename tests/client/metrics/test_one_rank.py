"""What the clients' numbers are in a fit of two processes, and what is said of those that are of one."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from _scripts import run_script
from torchmetrics import MeanMetric

from lightning_fl_ext.client.metrics.logged import told_by_one_batch
from lightning_fl_ext.client.notices import warn_of_one_batch, warn_of_one_rank


def test_numbers_of_one_rank_are_those_that_are_named():
    """Ranks 0 and 1 log their rank: what is of both is one half."""
    out = run_script(Path(__file__).with_name("_one_rank.py"))
    of_one = dict.fromkeys(["step", "step_meant", "step_object", "epoch"], 0.0)
    of_both = dict.fromkeys(["step_synced", "epoch_synced", "epoch_object"], 0.5)
    assert out["found"] == of_one | of_both
    of_epochs, of_steps = out["said"]
    assert "logged without `sync_dist=True` in 2 processes: `epoch`. Lightning" in of_epochs
    assert (
        "logged on training steps alone, without `sync_dist=True`, in 2 processes: `step`, `step_object`."
        in of_steps
    )
    assert "write `self.log(..., on_step=False, on_epoch=True, sync_dist=True)`" in of_steps


def entry(**given):
    meta = {"name": "loss", "on_step": True, "on_epoch": False}
    return SimpleNamespace(meta=SimpleNamespace(**meta), **given)


class Results(dict):
    training = True


def test_metric_objects_that_the_server_pools_are_not_named():
    metric, synced = MeanMetric(), MeanMetric(dist_sync_on_step=True)
    trainer = SimpleNamespace(_results=Results(loss=entry(is_tensor=False, value=metric)))
    assert told_by_one_batch(trainer, pooled=[MeanMetric()]) == ["loss"]
    assert told_by_one_batch(trainer, pooled=[metric]) == []
    trainer = SimpleNamespace(_results=Results(loss=entry(is_tensor=False, value=synced)))
    assert told_by_one_batch(trainer, pooled=[]) == []


@pytest.mark.parametrize("warn", [warn_of_one_rank, warn_of_one_batch])
def test_numbers_of_one_rank_are_named_once_where_others_have_examples_too(warn, caplog):
    both = SimpleNamespace(distributed_sampler_kwargs=None, world_size=2)
    tensor_parallel = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 1}, world_size=2)
    alone = SimpleNamespace(world_size=1)
    for names, trainer in [([], both), (["loss"], tensor_parallel), (["loss"], alone)]:
        warn(names, trainer, "a run")
    assert not caplog.records
    for _ in range(2):
        warn(["loss", "other"], both, "a run")
    (record,) = caplog.records
    assert "in 2 processes: `loss`, `other`." in record.message
